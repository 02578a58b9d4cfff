"""Quantised weights: the laws, the cost, checkpoints and adapters on them, and what is refused."""

import importlib.util
import json

import pytest
import torch
from peft import PeftModel
from torch import nn

from hsdlab import HSD, FullDepth, UserError, generate, load_model, replay
from hsdlab import testing as laws
from hsdlab.decoding.cost import decode_bytes, decode_flops
from hsdlab.decoding.families import UnsupportedModelError, decoder_parts, matrix_weights
from hsdlab.decoding.layer_sizes import weight_bytes
from hsdlab.decoding.packed import _packable
from hsdlab.models.identity import weights_hash
from hsdlab.models.load import weights_fingerprint
from hsdlab.models.merging import few_logits
from hsdlab.models.quantization import is_quantised, weights_dtype
from hsdlab.modules import FinetuneModule
from hsdlab.modules.lora import LoRA
from hsdlab.stored import stored_bytes
from tests.strategies_for_tests import RandomPlan
from tests.tiny_checkpoints import save, save_adapter, tiny_llama

PACKAGES = {"int8": "torchao", "nf4": "bitsandbytes"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save(tiny_llama(), tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="module", params=PACKAGES)
def how(request):
    if importlib.util.find_spec(PACKAGES[request.param]) is None:
        pytest.skip(f"{PACKAGES[request.param]} is not installed (pip install 'hsdlab[{request.param}]')")
    return request.param


def loaded(name, how=None):
    model, tokenizer = load_model(name, device="cpu", quantization=how)
    model.generation_config.eos_token_id = None
    return model, tokenizer


@pytest.fixture(scope="module")
def quantised(how, folder):
    return loaded(folder, how)[0]


@pytest.fixture(scope="module")
def plain(folder):
    return loaded(folder)[0]


LAWS = [laws.law_2_never_skip, laws.law_3_replay, laws.law_4_trace, laws.law_5_restored, laws.law_7_rows]


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_laws(quantised, law):
    schedule = law in (laws.law_2_never_skip, laws.law_7_rows)
    law(quantised, HSD(1, 0, 2) if schedule else RandomPlan(share=0.5), "greedy")


def test_full_depth_writes_what_transformers_does(quantised):
    ids, mask = laws.prompts(3)
    options = {"input_ids": ids, "attention_mask": mask, "max_new_tokens": 8}
    ours = generate(quantised, strategy=FullDepth(), **options).sequences
    assert torch.equal(ours, quantised.generate(**options, do_sample=False))


def test_operations_are_those_of_the_matrices_and_bytes_those_that_are_stored(how, quantised, plain):
    assert matrix_weights(decoder_parts(quantised).layers[0]) == matrix_weights(decoder_parts(plain).layers[0])
    projection = quantised.model.layers[0].self_attn.q_proj  # 32 x 32
    scales = (4 + 1) * 32 if how == "int8" else 4 * 16 + 4 * 16  # and zero points, by output; by block, and 16 levels
    expected = scales + (1024 if how == "int8" else 512)
    described = len(projection.state_dict().get("weight.quant_state.bitsandbytes__nf4", ()))
    assert stored_bytes(projection) == expected + described
    assert weight_bytes(quantised.model.layers[0], 4) == pytest.approx(expected / 1024, abs=0.15)
    assert weight_bytes(plain.model.layers[0], 4) == 4
    ids, mask = laws.prompts(2)
    trace = generate(plain, input_ids=ids, attention_mask=mask, strategy=HSD(1, 0, 2), max_new_tokens=6).trace
    assert decode_flops(quantised, trace) == decode_flops(plain, trace)
    with torch.inference_mode():  # as the Trainer has it; a quantised weight cannot be detached there
        assert stored_bytes(projection) == expected + described
    saved = sum(map(stored_bytes, plain.model.layers)) - sum(map(stored_bytes, quantised.model.layers))
    assert 0 < decode_bytes(plain, trace) - decode_bytes(quantised, trace) < saved * trace.decode_passes


def test_a_decode_is_not_compiled(quantised):
    with pytest.raises(UserError, match=r"compile=True: the weights of LlamaForCausalLM are quantised"):
        generate(quantised, input_ids=laws.prompts(1)[0], strategy=FullDepth(), max_new_tokens=4, compile=True)


def test_a_decode_lays_out_no_quantised_weights_anew(quantised):
    assert all(module is quantised.lm_head for module in _packable(decoder_parts(quantised)))


def test_a_quantised_checkpoint_loads_as_it_is(how, quantised, folder, tmp_path):
    quantised.save_pretrained(tmp_path)
    loaded(folder)[1].save_pretrained(tmp_path)
    again, _ = loaded(tmp_path)
    assert is_quantised(again)
    assert weights_dtype(again) == f"{how}, float32"
    assert torch.equal(few_logits(again), few_logits(quantised))
    assert weights_hash(again) == weights_hash(quantised)
    assert weights_fingerprint(again) == weights_fingerprint(quantised) != weights_fingerprint(loaded(folder)[0])
    with pytest.raises(UserError, match=rf"are quantised already \({PACKAGES[how]}\); leave it out"):
        load_model(tmp_path, quantization=how)


def test_an_adapter_stays_beside_quantised_weights(how, quantised, folder, tmp_path):
    save_adapter(folder, tiny_llama(), tmp_path, ["q_proj", "down_proj"])
    model, _ = loaded(tmp_path, how)
    assert is_quantised(model)
    assert (few_logits(model) - few_logits(quantised)).abs().max() > 0.1
    expected = PeftModel.from_pretrained(loaded(folder, how)[0], tmp_path).eval()
    assert torch.equal(few_logits(model), few_logits(expected))
    laws.law_3_replay(model, RandomPlan(share=0.5), "greedy")


def test_lora_learns_beside_quantised_weights_and_nothing_else_does(how, folder, tmp_path):
    model, tokenizer = load_model(folder, device="cpu", quantization=how)
    with pytest.raises(UserError, match=r"quantised weights, which cannot be trained: give lora"):
        FinetuneModule(model, tokenizer)
    before = weights_hash(model)
    module = FinetuneModule(model, tokenizer, lora=LoRA(r=4))
    learning = [weight for weight in module.parameters() if weight.requires_grad]
    optimizer = torch.optim.SGD(learning, lr=1e-2)
    ids, _ = laws.prompts(1)
    executed = torch.ones(*ids.shape, 3, dtype=torch.bool)
    executed[:, -2:, 1] = False
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        logits = replay(module.model, input_ids=ids, executed=executed)[:, :-1]
        losses.append(nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()))
        losses[-1].backward()
        optimizer.step()
    assert losses[2] < losses[0]
    assert all(weight.grad is not None for weight in learning)
    module.export(tmp_path / "adapter")
    expected = few_logits(module.model.eval())
    model, _ = loaded(tmp_path / "adapter", how)
    torch.testing.assert_close(few_logits(model), expected, rtol=0, atol=1e-5)
    assert before == weights_hash(loaded(folder, how)[0])


def test_a_quantised_head_has_no_candidate_tokens(how, folder):
    model, _ = loaded(folder, how)
    model.lm_head = model.model.layers[0].self_attn.q_proj
    with pytest.raises(UnsupportedModelError, match="The head of LlamaForCausalLM has quantised weights"):
        decoder_parts(model).check_head_rows()


def test_what_cannot_be_quantised_or_loaded_is_one_sentence(folder, tmp_path):
    with pytest.raises(UserError, match=r"quantization='int3': expected int8 or nf4, or leave it out"):
        load_model(folder, quantization="int3")
    with pytest.raises(UserError, match=r"quantization=nf4 has no float64"):
        load_model(folder, quantization="nf4", dtype="float64")
    save(tiny_llama(), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4, "group_size": 32}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"a Python package that the model needs is missing .*(optimum|gptqmodel)"):
        load_model(tmp_path)
