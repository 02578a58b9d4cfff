"""Layers that read another layer's keys and values (the semantics extended, point 4)."""

import pytest
import torch

from hsdlab import FullDepth, ScheduledStrategy, generate
from hsdlab import testing as laws
from hsdlab.decoding.families import UnsupportedModelError, attention, decoder_parts
from tests.decoding.test_windows import Away

NEW = 8


class Only(ScheduledStrategy):
    """The same layers in every step."""

    def __init__(self, layers):
        self.layers = layers

    def layers_at(self, step, num_layers, max_steps):
        return self.layers


@pytest.fixture(scope="module")
def model():
    return laws.tiny_model("gemma4_shared")


def call(**options):
    input_ids, mask = laws.prompts(3)
    return {"input_ids": input_ids, "attention_mask": mask, "max_new_tokens": NEW, "eos_token_id": None, **options}


def test_the_donor_of_a_layer_is_the_last_of_its_type_that_has_keys(model):
    parts = decoder_parts(model)
    assert parts.donors == (None, None, None, 2, 2, 1)
    assert parts.windows == (laws.tiny.WINDOW, None, laws.tiny.WINDOW, laws.tiny.WINDOW, laws.tiny.WINDOW, None)
    assert parts.attends == (True, True, True, False, False, False)


@pytest.mark.parametrize("beams", [1, 3])
def test_a_donor_that_is_skipped_computes_keys_and_values_for_its_reader_and_nothing_else(model, beams):
    """In every step, also where the sets of layers never grow: the reader attends to the newest token, too."""
    calls, outputs = [], []
    donor = attention(decoder_parts(model).layers[1])
    handles = [
        donor.k_proj.register_forward_hook(lambda module, args, output: calls.append(len(output))),
        donor.o_proj.register_forward_hook(lambda module, args, output: outputs.append(len(output))),
    ]
    output = generate(model, strategy=Away(layer=1, steps=NEW), **call(num_beams=beams))
    for handle in handles:
        handle.remove()
    assert outputs == [3]  # the prefill
    assert calls == [3] + [3 * beams] * (NEW - 1)
    assert output.trace.layers.late_tokens.tolist() == [0, 3 * beams * (NEW - 1), 0, 0, 0, 0]
    whole = beams * 3 * sum(range(laws.PROMPT_TOKENS + 1, laws.PROMPT_TOKENS + NEW))
    assert output.trace.layers.attended.tolist()[5] == whole


def test_a_donor_owes_only_what_a_reader_reads(model):
    assert generate(model, strategy=FullDepth(), **call()).trace.filled == 0
    assert generate(model, strategy=Only([0, 3, 5]), **call()).trace.layers.late_tokens.tolist() == [0, 21, 21, 0, 0, 0]
    assert generate(model, strategy=Only([0, 1, 5]), **call()).trace.filled == 0


def test_several_hidden_states_of_a_token_are_refused():
    sizes = {"num_kv_shared_layers": 2, "layer_types": ["sliding_attention", "full_attention"] * 3, "head_dim": 8}
    sizes |= {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 64, "laurel_rank": 4}
    sizes |= {"num_key_value_heads": 2, "activation_sparsity_pattern": [0.0] * 6}
    with pytest.raises(UnsupportedModelError, match="passes several hidden states of each token between its layers"):
        generate(laws.tiny_model("gemma3n_text", dtype=torch.float32, **sizes), strategy=FullDepth(), **call())
