"""Experts and routers of a layer that a token skips are not called."""

import pytest
import torch

from hsdlab import generate
from hsdlab import testing as laws
from hsdlab.decoding.families import decoder_parts
from tests.strategies_for_tests import RandomPlan


@pytest.mark.parametrize(("family", "router"), [("mixtral", "gate"), ("gpt_oss", "router"), ("deepseek_v3", "gate")])
def test_experts_and_routers_of_skipped_layers_are_not_called(family, router):
    """Late keys and values need neither; each is called for as many tokens as the layer runs."""
    model = laws.tiny_model(family)
    seen = {}  # (layer, part): tokens

    def counts(key):
        def hook(module, args):
            seen[key] = seen.get(key, 0) + args[0].numel() // args[0].shape[-1]

        return hook

    layers = {}
    for index, layer in enumerate(decoder_parts(model).layers):
        if hasattr(layer.mlp, "experts"):
            layers[index] = layer
            for part in ("experts", router):
                getattr(layer.mlp, part).register_forward_pre_hook(counts((index, part)))
    input_ids, mask = laws.prompts(3)
    call = {"input_ids": input_ids, "attention_mask": mask, "max_new_tokens": 8, "eos_token_id": None}
    with torch.no_grad():
        trace = generate(model, strategy=RandomPlan(share=0.4), **call).trace
    assert trace.filled > 0
    ran = (trace.layers.tokens + trace.layers.prompt_tokens).tolist()
    assert len(set(ran)) > 1
    assert seen == {(index, part): ran[index] for index in layers for part in ("experts", router)}
