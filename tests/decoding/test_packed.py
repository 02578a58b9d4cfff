"""Weights in another layout: the same tokens and logits as the model's own weights, and never those of another time."""

import pytest
import torch

from hsdlab import HSD, FullDepth, generate, replay
from hsdlab import testing as laws
from hsdlab.decoding import packed
from hsdlab.decoding.families import decoder_parts
from hsdlab.decoding.packed import packed_weights
from hsdlab.testing import tiny_model
from hsdlab.testing.snapshot import snapshot
from tests.law_cells import by_family

LONG = {"max_new_tokens": packed.FEWEST_STEPS, "eos_token_id": None}


@pytest.fixture
def model(family_model):
    return tiny_model(family_model.config.model_type, dtype=torch.float32)


def copies(model):
    return [packed._copies[module] for module in model.modules() if module in packed._copies]


WAYS = [("greedy", [0]), ("greedy", [0, 1, 2]), ("beam", [0, 1, 2])]


@pytest.mark.parametrize(("family_model", "mode", "rows"), by_family(WAYS), indirect=["family_model"])
def test_full_depth_is_plain_generate(model, mode, rows):
    input_ids, mask = laws.prompts(3)
    with laws.watched(model) as (plain_logits, _):
        plain = model.generate(input_ids[rows], attention_mask=mask[rows], **LONG, **laws.MODES[mode])
    here = laws.decode(model, FullDepth(), mode, rows=torch.tensor(rows), **LONG)
    assert torch.equal(here.output.sequences, plain)
    expected = torch.stack(plain_logits)
    tolerance = 4e-6 * float(expected.abs().max())  # 1e-4 for logits of 25
    torch.testing.assert_close(torch.stack(here.logits), expected, rtol=0, atol=tolerance)
    assert copies(model)


def test_skipped_layers_are_those_of_replay_and_the_model_is_as_before(model):
    before = snapshot(model)
    seen = laws.decode(model, HSD(2, 0, 3), **LONG)
    assert snapshot(model) == before
    assert copies(model)
    ids, mask = seen.output.sequences, torch.nn.functional.pad(laws.prompts(3)[1], (0, LONG["max_new_tokens"]), value=1)
    executed = seen.output.trace.mask(laws.PROMPT_TOKENS)
    with torch.no_grad():
        expected = replay(model, input_ids=ids, attention_mask=mask, executed=executed)[:, laws.PROMPT_TOKENS - 1 : -1]
    tolerance = 4e-6 * float(expected.abs().max())
    torch.testing.assert_close(torch.stack(seen.logits, dim=1), expected, rtol=0, atol=tolerance)


def test_few_steps_are_not_worth_it():
    model = tiny_model(dtype=torch.float32)
    laws.decode(model, FullDepth(), **{**LONG, "max_new_tokens": packed.FEWEST_STEPS - 1})
    assert not copies(model)
    laws.decode(model, FullDepth(), rows=torch.tensor([0]), **LONG)
    assert len(copies(model)) == 6 * 7 + 1
    laws.decode(model, FullDepth(), **LONG)
    assert len(copies(model)) == 6 * 7 + 1


def test_a_model_that_is_too_large_is_left_alone(monkeypatch):
    monkeypatch.setattr(packed, "MOST_BYTES", 1000)
    model = tiny_model(dtype=torch.float32)
    laws.decode(model, FullDepth(), **LONG)
    assert not copies(model)


@pytest.mark.parametrize("rows", [[0], [0, 1, 2]])
def test_weights_that_changed_are_copied_anew(rows):
    model = tiny_model(dtype=torch.float32)
    input_ids, mask = (part[rows] for part in laws.prompts(3))
    call = {"input_ids": input_ids, "attention_mask": mask, **LONG}
    before = generate(model, strategy=FullDepth(), **call).sequences
    gate, head = model.model.layers[3].mlp.gate_proj.weight, model.get_output_embeddings().weight
    gate.data += 0.5  # as peft merges an adapter: without a new version
    with torch.no_grad():
        head.neg_()
    after = generate(model, strategy=FullDepth(), **call).sequences
    assert torch.equal(after, model.generate(**call))
    assert not torch.equal(after, before)


def test_gradients_and_autocast_use_the_models_own_weights():
    model = tiny_model(dtype=torch.float32)
    input_ids, _ = laws.prompts(1)
    with packed_weights(decoder_parts(model), packed.FEWEST_STEPS):
        model(input_ids).logits.sum().backward()
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            assert model(input_ids).logits.dtype == torch.bfloat16
    assert model.model.layers[0].mlp.up_proj.weight.grad is not None


@pytest.mark.parametrize("has_instructions", [True, False], ids=["with-bf16", "without"])
def test_bfloat16_gives_the_tokens_of_plain_generate(monkeypatch, has_instructions):
    if has_instructions and not packed.onednn_takes_bfloat16():
        pytest.skip("this CPU has no instructions for bfloat16 (AVX-512 on x86)")
    monkeypatch.setattr(packed, "onednn_takes_bfloat16", lambda: has_instructions)
    model = tiny_model(dtype=torch.bfloat16)
    input_ids, mask = laws.prompts(3)
    here = laws.decode(model, FullDepth(), **LONG)
    assert bool(copies(model)) == has_instructions
    assert torch.equal(here.output.sequences, model.generate(input_ids, attention_mask=mask, **LONG))


@pytest.mark.parametrize("rows", [[0], [0, 1]], ids=["one-row", "two-rows"])
@pytest.mark.parametrize("has_amx", [True, False], ids=["with-amx", "without"])
def test_one_row_is_multiplied_with_the_models_own_weights_where_that_is_faster(monkeypatch, has_amx, rows):
    monkeypatch.setattr(packed, "one_row_is_faster_unpacked", lambda: has_amx)
    model, called = tiny_model(dtype=torch.float32), []
    input_ids, mask = (part[rows] for part in laws.prompts(3))
    linear = torch.nn.functional.linear
    monkeypatch.setattr(torch.nn.functional, "linear", lambda *args: called.append(args[0].shape[:-1]) or linear(*args))
    decoded = generate(model, strategy=FullDepth(), input_ids=input_ids, attention_mask=mask, **LONG).sequences
    steps = [shape for shape in called if shape[-1] == 1]  # those of one token a row, the prompt's are longer
    assert bool(steps) == (has_amx and rows == [0])
    assert copies(model)
    assert torch.equal(decoded, model.generate(input_ids, attention_mask=mask, **LONG))
