"""Layers with a state: skipped tokens enter it in their order, and it cannot be taken back (the semantics, point 7)."""

import pytest
import torch
from transformers import DynamicCache

from hsdlab import HSD, FullDepth, OracleExit, UserError, generate, replay
from hsdlab import testing as laws
from hsdlab.decoding.families import UnsupportedModelError, attention, decoder_parts
from hsdlab.decoding.forced import ForcedTexts, layer_schedule
from hsdlab.testing.expect import expect_close
from tests.decoding.test_windows import Away
from tests.strategies_for_tests import Changing, ChangingPrompt, RandomPlan

NEW = 8


@pytest.fixture(scope="module")
def model():
    return laws.tiny_model("lfm2")


def call(**options):
    input_ids, mask = laws.prompts(3)
    return {"input_ids": input_ids, "attention_mask": mask, "max_new_tokens": NEW, "eos_token_id": None, **options}


@pytest.mark.parametrize("beams", [1, 3])
def test_a_skipped_token_enters_the_state_once_and_nothing_else_is_computed(model, beams):
    entered, outputs = [], []
    mixer = attention(decoder_parts(model).layers[1])
    handles = [
        mixer.in_proj.register_forward_hook(lambda module, args, output: entered.append(len(output))),
        mixer.out_proj.register_forward_hook(lambda module, args, output: outputs.append(len(output))),
    ]
    output = generate(model, strategy=Away(layer=1, steps=4), **call(num_beams=beams))
    for handle in handles:
        handle.remove()
    steps = NEW - 1
    assert outputs == [3] + [3 * beams] * (steps - 4)
    assert entered == [3] + [3 * beams] * steps  # the prefill, and each new token once
    assert output.trace.layers.late_tokens.tolist() == [0, 3 * beams * 4, 0, 0, 0, 0]
    assert output.trace.layers.late_passes.tolist() == [0, 4, 0, 0, 0, 0]
    assert output.trace.layers.attended[1] == 0 < output.trace.layers.attended[2]


@pytest.mark.parametrize("family", ["falcon_h1", "mamba"])
def test_a_layer_may_have_keys_and_values_beside_its_state_or_no_mlp(family):
    laws.law_3_replay(laws.tiny_model(family), RandomPlan(share=0.5), "greedy")


def test_a_shrinking_schedule_owes_nothing_and_frees_what_it_no_longer_needs(model):
    whole = generate(model, strategy=FullDepth(), **call())
    output = generate(model, strategy=HSD(2, 0, 4), **call())
    assert output.trace.filled == 0
    assert output.cache_bytes <= whole.cache_bytes


def test_a_family_that_is_not_listed_is_served_unless_its_own_passes_differ():
    """Of Nemotron-H, each layer is Mamba 2, attention or an MLP, to which a skipped token owes nothing."""
    options = {"mamba_num_heads": 4, "mamba_head_dim": 16, "ssm_state_size": 8, "n_groups": 1, "chunk_size": 4}
    options |= {"num_key_value_heads": 2, "head_dim": 8, "layers_block_type": ["mamba", "mlp", "attention"] * 2}
    model = laws.tiny_model("nemotron_h", dtype=torch.float32, **options)
    with pytest.raises(UnsupportedModelError, match="limits its time steps"):
        generate(model, strategy=Changing(), **call())
    for layer in model.model.layers:
        layer.mixer.time_step_limit = (0.0, float("inf"))
    late = generate(model, strategy=Changing(), **call()).trace.layers.late_tokens
    assert [bool(tokens) for tokens in late] == [True, False, True] * 2
    generate(model, strategy=ChangingPrompt(), **call())


def test_what_would_take_a_state_back_is_refused(model):
    past, executed = DynamicCache(config=model.config), torch.ones(3, 5, 6, dtype=torch.bool)
    with pytest.raises(UserError, match="OracleExit chooses the exit layer after all layers have run, and Lfm2"):
        generate(model, strategy=OracleExit(), **call())
    assert generate(model, strategy=OracleExit(keys_and_values="full"), **call()).trace.average_layers < 6
    with pytest.raises(UserError, match="past: Lfm2ForCausalLM has recurrent layers"):
        replay(model, input_ids=laws.prompts(3)[0], executed=executed, past=past)


def test_texts_are_scored_without_a_cache_of_their_prompts(model):
    input_ids, mask = laws.prompts(3)
    batch = {
        "input_ids": torch.cat([input_ids, input_ids.flip(1) + 1], dim=1),
        "attention_mask": torch.cat([mask, torch.ones_like(mask)], dim=1),
        "target_mask": torch.arange(10).expand(3, -1) >= 5,
    }
    schedule = layer_schedule(HSD(2, 0, 4), 6, 5)
    with torch.no_grad():
        texts = ForcedTexts(model, batch)
        executed = torch.ones(3, 9, 6, dtype=torch.bool)
        executed[:, 5:] = schedule.steps[:4]
        whole = {"input_ids": batch["input_ids"][:, :-1], "attention_mask": batch["attention_mask"][:, :-1]}
        expected = replay(model, **whole, executed=executed)[:, 5:].flatten(0, 1)
        expect_close(texts.logits(executed[:, 5:]), expected, "the logits of the decode steps")
