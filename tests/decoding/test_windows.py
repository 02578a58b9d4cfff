"""Sliding windows: a layer holds, owes and reads no more than its window shows (the semantics extended, point 3)."""

import pytest
import torch
from transformers import DynamicCache

from hsdlab import HSD, FullDepth, SkipStrategy, UserError, Verified, generate, replay
from hsdlab import testing as laws
from hsdlab.decoding import storage
from hsdlab.decoding.cache import SkipCache
from hsdlab.decoding.compiled import Compilation
from hsdlab.decoding.cost import decode_bytes
from hsdlab.decoding.draft_counts import DraftCounts
from hsdlab.decoding.storage import LayerStorage
from hsdlab.testing.expect import expect_close
from hsdlab.testing.tiny import WINDOW
from tests.decoding.counted import counted
from tests.strategies_for_tests import ChangingPrompt, RandomPlan

NEW, GROWTH = 60, 8
BYTES = 2 * 2 * 8 * 8  # of one token in one layer: keys and values, 2 heads, 8 numbers each, float64


class Away(SkipStrategy):
    """Skips one layer for some steps, and runs all after them."""

    def __init__(self, layer=2, steps=10):
        self.layer, self.steps = layer, steps

    def plan(self, state):
        executed = torch.ones(state.rows, state.num_layers, dtype=torch.bool)
        executed[:, self.layer] = state.step >= self.steps
        return executed


@pytest.fixture(scope="module")
def model():
    return laws.tiny_model("mistral_window", max_position_embeddings=128)


@pytest.fixture(scope="module")
def mixed():
    return laws.tiny_model("ministral", max_position_embeddings=128)


def call(rows=3, **options):
    input_ids, mask = laws.prompts(rows)
    return {"input_ids": input_ids, "attention_mask": mask, "max_new_tokens": NEW, "eos_token_id": None, **options}


def decode(model, strategy):
    """Decode a text much longer than the window, and compare it with ``replay``."""
    seen = laws.decode(model, strategy, max_new_tokens=NEW, eos_token_id=None)
    output = seen.output
    mask = torch.cat([laws.prompts(3)[1], torch.ones(3, NEW, dtype=torch.long)], dim=1)
    executed = output.trace.mask(laws.PROMPT_TOKENS)
    with torch.no_grad():
        expected = replay(model, input_ids=output.sequences, attention_mask=mask, executed=executed)
    expect_close(torch.stack(seen.logits, dim=1), expected[:, laws.PROMPT_TOKENS - 1 : -1], "logits and replay")
    return output


@pytest.mark.parametrize("strategy", [FullDepth(), RandomPlan(share=0.5), ChangingPrompt()], ids=repr)
def test_a_text_much_longer_than_the_window_takes_no_more_memory(model, strategy, monkeypatch):
    monkeypatch.setattr(storage, "GROWTH_TOKENS", GROWTH)
    output = decode(model, strategy)
    assert output.cache_bytes <= 3 * 6 * (WINDOW + 2 * GROWTH) * BYTES
    if isinstance(strategy, FullDepth):
        assert torch.equal(output.sequences, model.generate(**call()))


def test_layers_without_a_window_hold_the_whole_text(mixed, monkeypatch):
    monkeypatch.setattr(storage, "GROWTH_TOKENS", GROWTH)
    output = decode(mixed, RandomPlan(share=0.5))
    whole, window = laws.PROMPT_TOKENS + NEW, WINDOW + 2 * GROWTH
    assert 3 * 2 * whole * BYTES < output.cache_bytes <= 3 * (2 * (whole + GROWTH) + 4 * window) * BYTES


@pytest.mark.parametrize("beams", [1, 3])
def test_only_what_the_window_shows_is_computed_late(model, beams):
    output = generate(model, strategy=Away(steps=10), **call(num_beams=beams, max_new_tokens=14))
    late = output.trace.layers.late_tokens
    assert late.tolist() == [0, 0, 3 * beams * (WINDOW - 1), 0, 0, 0]
    assert output.trace.layers.late_passes.tolist() == [0, 0, 1, 0, 0, 0]


def test_as_many_keys_are_attended_to_as_the_window_shows(mixed):
    output = generate(mixed, strategy=FullDepth(), **call(rows=1, max_new_tokens=6))
    whole = sum(range(laws.PROMPT_TOKENS + 1, laws.PROMPT_TOKENS + 6))
    assert output.trace.layers.attended.tolist() == [5 * WINDOW, whole, 5 * WINDOW] * 2


def test_a_window_as_long_as_the_text_is_full_attention(monkeypatch):
    """The prompt is then held once for all beams."""
    texts = []
    begin = SkipCache._begin_prompt

    def noted(self, *args):
        begin(self, *args)
        texts.append(self._windows)

    monkeypatch.setattr(SkipCache, "_begin_prompt", noted)
    options = call(max_new_tokens=8, num_beams=2)
    for window in (12, 13):
        model = laws.tiny_model("mistral_window", sliding_window=window)
        output = generate(model, strategy=RandomPlan(share=0.5), **options)
        without = generate(laws.tiny_model("mistral"), strategy=RandomPlan(share=0.5), **options)
        assert torch.equal(output.sequences, without.sequences)
    assert texts[0] == (12,) * 6
    assert texts[2] == (None,) * 6


def test_compiled_steps_need_a_window_as_long_as_the_text():
    model, options = laws.tiny_model("mistral_window", sliding_window=13), call(rows=1)
    compiled = generate(model, strategy=HSD(1, 0, 3), compile=Compilation("eager"), **{**options, "max_new_tokens": 8})
    plain = generate(model, strategy=HSD(1, 0, 3), **{**options, "max_new_tokens": 8})
    assert torch.equal(compiled.sequences, plain.sequences)
    with pytest.raises(UserError, match=r"5 tokens and max_new_tokens=9 exceed the sliding window of 13 tokens"):
        generate(model, strategy=HSD(1, 0, 3), compile=Compilation("eager"), **{**options, "max_new_tokens": 9})


@pytest.mark.parametrize("known", [2, 3, 4, 9])
def test_replay_continues_a_cache_whose_windows_have_dropped_tokens(mixed, known):
    input_ids = torch.randint(7, 64, (2, 16), generator=torch.Generator().manual_seed(1))
    executed = torch.rand(2, 16, 6, generator=torch.Generator().manual_seed(2)) < 0.5
    executed[:, :known] = True
    past = DynamicCache(config=mixed.config)
    with torch.no_grad():
        mixed(input_ids=input_ids[:, :known], past_key_values=past)
        got = replay(mixed, input_ids=input_ids[:, known:], executed=executed[:, known:], past=past)
        expected = replay(mixed, input_ids=input_ids, executed=executed)[:, known:]
    expect_close(got, expected, "the logits after a cache")


def test_a_block_begins_with_a_later_token_of_the_text(monkeypatch):
    monkeypatch.setattr(storage, "GROWTH_TOKENS", 3)
    text = torch.arange(20.0).reshape(1, 1, 20, 1)
    block = LayerStorage(text[:, :, 4:6], -text[:, :, 4:6], copies=2, most=14, apart=False, first=4)
    columns = []
    for new in range(14):  # the window is 3: the token itself and the two before
        block.reserve(new + 1, seen_from=4 + new)
        block.append(new, *(part[:, :, 6 + new : 7 + new].expand(2, -1, -1, -1) for part in (text, -text)))
        keys, values = block.read(new + 1, seen_from=4 + new)
        assert keys[:, 0, :, 0].tolist() == [list(range(4 + new, 7 + new))] * 2
        assert torch.equal(keys, -values)
        columns.append(block.nbytes // (2 * 2 * 4))
    assert max(columns) <= 2 + 2 * 3


def test_a_draft_counts_no_key_outside_of_a_window():
    """By hand: a prompt of 10 tokens, a window of 4 in the first of two layers."""
    counts = DraftCounts([WINDOW, None], prompt_length=10, rows=2)
    one_step = torch.tensor([[True, True], [False, True]])  # (rows, layers)
    counts.drafted(one_step, starts=torch.tensor([0, 2]), drafting=torch.tensor([True, True]), head=None)
    assert counts.attended.tolist() == counts.keys_read.tolist() == [WINDOW, 11 + 13]
    tokens = torch.tensor([[True, True, True], [True, False, False]])  # those of the second row are padding
    counts.verified(tokens[:, :, None].expand(-1, -1, 2), starts=torch.tensor([0, 2]), valid=tokens)
    assert counts.attended.tolist() == [WINDOW + 4 * WINDOW, 24 + 11 + 12 + 13 + 13]
    assert counts.keys_read.tolist() == [WINDOW + (13 - 7) + WINDOW, 24 + 13 + 13]  # tokens 7 … 12 of the first row


@pytest.mark.parametrize("family", ["mistral_window", pytest.param("ministral", marks=pytest.mark.slow)])
def test_verified_reads_of_the_cache_what_it_says(family):
    model = laws.tiny_model(family)
    input_ids, mask = laws.prompts(1)
    call = {"input_ids": input_ids, "attention_mask": mask}
    output, both = counted(model, Verified(HSD(2, 0, 4), 3), max_new_tokens=12, **call)
    _, prefill = counted(model, FullDepth(), max_new_tokens=1, **call)
    assert decode_bytes(model, output.trace) == pytest.approx((both - prefill).bytes_read, rel=0.01)
