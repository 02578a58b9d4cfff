"""Preallocated keys and values: written in place, read as views, grown in large steps."""

import pytest
import torch

from hsdlab import FullDepth, generate
from hsdlab.decoding import storage
from hsdlab.decoding.storage import LayerStorage
from hsdlab.testing import prompts
from tests.strategies_for_tests import RandomPlan

SOURCES, HEADS, PROMPT, SIZE = 2, 2, 3, 4


def numbered(*shape):
    return torch.arange(float(torch.Size(shape).numel())).reshape(shape)


@pytest.fixture(params=[False, True], ids=["together", "apart"])
def apart(request):
    return request.param


@pytest.fixture
def made(apart, monkeypatch):
    monkeypatch.setattr(storage, "GROWTH_TOKENS", 2)
    prompt = numbered(SOURCES, HEADS, PROMPT, SIZE)
    return LayerStorage(prompt, -prompt, copies=2, most=5, apart=apart)


def test_growing_keeps_what_is_written_and_stops_at_the_most(made, apart):
    tokens = numbered(4, HEADS, 5, SIZE) + 1000
    for token in range(5):
        made.reserve(token + 1)
        made.append(token, tokens[:, :, token : token + 1], -tokens[:, :, token : token + 1])
    keys, values = made.read(5)
    assert torch.equal(keys[:, :, -5:], tokens)
    assert torch.equal(values[:, :, -5:], -tokens)
    prompt = numbered(SOURCES, HEADS, PROMPT, SIZE)
    if apart:
        assert torch.equal(made.prompt[0], prompt)
        assert keys.shape[2] == 5
    else:
        assert torch.equal(keys[:, :, :PROMPT], prompt.repeat_interleave(2, dim=0))
    rows_of_prompt = SOURCES if apart else 4
    assert made.nbytes == 2 * HEADS * SIZE * 4 * (rows_of_prompt * PROMPT + 4 * 5)


def test_views_are_no_copies_and_several_tokens_come_at_once(made):
    made.reserve(4)
    first, _ = made.read(3)
    made.append(1, numbered(4, HEADS, 2, SIZE), numbered(4, HEADS, 2, SIZE))
    assert torch.equal(first[:, :, -2:], numbered(4, HEADS, 2, SIZE))
    assert first.data_ptr() == made.read(4)[0].data_ptr()


def test_single_entries_and_beams_leave_the_prompt_in_place(made, apart):
    made.reserve(2)
    entries = numbered(3, HEADS, 1, SIZE) + 50
    made.write(torch.tensor([0, 2, 2]), torch.tensor([1, 0, 1]), entries, -entries)
    before = made.read(2)[0].clone()
    assert torch.equal(before[2, :, -1], entries[2, :, 0])
    made.move(torch.tensor([1, 0, 2]), torch.tensor([0, 1, 3]), new_tokens=2)
    keys, values = made.read(2)
    assert torch.equal(keys[:, :, -2:], before[[1, 0, 2, 2], :, -2:])
    assert torch.equal(values[:, :, -2:], -keys[:, :, -2:])
    if not apart:
        assert torch.equal(keys[:, :, :PROMPT], before[:, :, :PROMPT])


@pytest.mark.parametrize("strategy", [FullDepth(), RandomPlan(share=0.5)], ids=repr)
def test_a_decode_that_grows_often_is_the_same(tiny, monkeypatch, strategy):
    input_ids, mask = prompts(3)
    call = {"input_ids": input_ids, "attention_mask": mask, "max_new_tokens": 9, "eos_token_id": None, "num_beams": 2}
    at_once = generate(tiny(), strategy=strategy, **call)
    monkeypatch.setattr(storage, "GROWTH_TOKENS", 1)
    growing = generate(tiny(), strategy=strategy, **call)
    assert torch.equal(growing.sequences, at_once.sequences)
    assert torch.equal(growing.sequences_scores, at_once.sequences_scores)
    assert growing.cache_bytes == at_once.cache_bytes
