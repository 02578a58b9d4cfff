"""Layers that wait on the disk: the laws, what is loaded of a skipped layer, and what is refused."""

import pytest
import torch

from hsdlab import CALM, HSD, FullDepth, SkipDecode, UserError, generate, load_model
from hsdlab import testing as laws
from hsdlab.decoding.families import UnsupportedModelError, decoder_parts
from hsdlab.modules import DecodeModule
from tests.strategies_for_tests import RandomParts, RandomPlan
from tests.tiny_checkpoints import save, save_adapter, tiny_gpt2, tiny_llama

PLACES = {
    "llama": {
        **dict.fromkeys(("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head", "model.layers.0"), "cpu"),
        **dict.fromkeys(("model.layers.1", "model.layers.2"), "disk"),
    },
    "gpt2": {
        **dict.fromkeys(
            ("transformer.wte", "transformer.wpe", "transformer.ln_f", "lm_head", "transformer.h.2"), "cpu"
        ),
        **dict.fromkeys(("transformer.h.0", "transformer.h.1"), "disk"),
    },
}


@pytest.fixture(scope="module", params=["llama", pytest.param("gpt2", marks=pytest.mark.slow)])
def placed(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    save({"llama": tiny_llama, "gpt2": tiny_gpt2}[request.param](), folder / "model")
    model, _ = load_model(
        folder / "model", dtype="float64", device_map=PLACES[request.param], offload_folder=folder / "weights"
    )
    model.generation_config.eos_token_id = None
    return model


@pytest.mark.parametrize(
    ("law", "strategy", "mode"),
    [
        (laws.law_2_never_skip, HSD(1, 0, 2), "greedy"),
        (laws.law_3_replay, RandomPlan(share=0.5), "beam"),
        (laws.law_3_replay, RandomParts(share=0.5), "greedy"),
        (laws.law_4_trace, RandomPlan(share=0.5), "greedy"),
        (laws.law_7_rows, CALM(0.3), "greedy"),
    ],
)
def test_laws(placed, law, strategy, mode):
    law(placed, strategy, mode)


def test_full_depth_writes_what_transformers_does_and_the_layers_are_as_before(placed):
    layers = decoder_parts(placed).layers
    before = [(type(layer), vars(layer)["forward"], set(vars(layer))) for layer in layers]
    ids, mask = laws.prompts(3)
    options = {"input_ids": ids, "attention_mask": mask, "max_new_tokens": 8}
    expected = placed.generate(**options, do_sample=False)
    assert torch.equal(generate(placed, strategy=FullDepth(), **options).sequences, expected)
    assert [(type(layer), vars(layer)["forward"], set(vars(layer))) for layer in layers] == before


def loads(model, layer, monkeypatch):
    """The names of the parts of a layer whose weights accelerate loads, as they are loaded."""
    found = []
    for name, module in model.get_submodule(layer).named_modules():
        hook = getattr(module, "_hf_hook", None)
        if hook is None:
            continue

        def noting(module, *args, own=hook.pre_forward, name=name, **kwargs):
            found.append(name)
            return own(module, *args, **kwargs)

        monkeypatch.setattr(hook, "pre_forward", noting)
    return found


def test_a_skipped_layer_is_not_loaded_and_a_late_one_in_part(placed, monkeypatch):
    if placed.config.model_type != "llama":
        pytest.skip("the names are Llama's")
    found = loads(placed, "model.layers.1", monkeypatch)
    options = {"input_ids": laws.prompts(1)[0], "max_new_tokens": 6}
    generate(placed, strategy=SkipDecode(1, 1, warmup=1), **options)  # layers 0 and 2 in all 5 decode steps
    assert found.count("") == found.count("mlp.down_proj") == found.count("self_attn.k_proj") == 1  # the prefill
    found.clear()
    generate(placed, strategy=RandomPlan(share=0.5), **options)
    assert found.count("self_attn.k_proj") > found.count("mlp.down_proj") == found.count("self_attn.q_proj")


def test_what_cannot_be_placed_is_one_sentence(placed, tmp_path):
    with pytest.raises(UserError, match=r"DecodeModule: the Trainer moves the whole model to one device"):
        DecodeModule(placed, None)
    with pytest.raises(UserError, match=r"compile=True: a device_map has placed the layers"):
        generate(placed, input_ids=laws.prompts(1)[0], strategy=FullDepth(), max_new_tokens=4, compile=True)
    save(tiny_llama(), tmp_path / "model")
    save_adapter(tmp_path / "model", tiny_llama(), tmp_path / "adapter", ["q_proj"])
    with pytest.raises(UserError, match=r"device='cpu' and device_map both say"):
        load_model(tmp_path / "model", device="cpu", device_map="auto")
    with pytest.raises(UserError, match=r"device_map: an adapter cannot be merged into weights that wait elsewhere"):
        load_model(tmp_path / "adapter", device_map="auto")
    with pytest.raises(UserError, match=r"offload_folder: no layer waits on the disk without device_map"):
        load_model(tmp_path / "model", offload_folder=tmp_path)
    model = laws.tiny_model()
    model.hf_device_map = {"model.layers.0": 0, "model.layers.1": 1, "lm_head": "cpu"}
    with pytest.raises(UnsupportedModelError, match=r"computes on several devices \(0, 1\) by its device_map"):
        decoder_parts(model)
    model.hf_device_map = {"model.embed_tokens": "disk", "lm_head": "cpu"}
    with pytest.raises(UnsupportedModelError, match=r"The embeddings of LlamaForCausalLM are not on the device"):
        decoder_parts(model.to("meta"))
