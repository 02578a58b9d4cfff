"""A merged adapter is the model with the adapter beside it, or it is refused: at load, at export, before training."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel

from hsdlab.errors import UserError
from hsdlab.models import load_model
from hsdlab.models.merging import check_merges, check_same_logits, few_logits, tied_names
from hsdlab.modules import FinetuneModule
from hsdlab.modules.lora import LoRA, add_lora
from tests.tiny_checkpoints import TOKENS, save, tiny_gpt2, tiny_llama, tiny_tokenizer

IDS = torch.arange(3, 27).view(2, 12)


def untied_gpt2():
    torch.manual_seed(0)
    sizes = {"vocab_size": len(TOKENS), "n_embd": 32, "n_layer": 3, "n_head": 4}
    config = GPT2Config(**sizes, initializer_range=0.3, bos_token_id=0, eos_token_id=1, tie_word_embeddings=False)
    return GPT2LMHeadModel(config).eval()


def adapter(folder, make, **options):
    """Write a base model and a random adapter for it; return the model with the adapter beside it."""
    model = make()
    save(model, folder / "base")
    model.name_or_path = str(folder / "base")
    torch.manual_seed(1)
    config = LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **options)
    adapted = get_peft_model(model, config).eval()
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "modules_to_save" in name or "trainable_tokens" in name:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    adapted.save_pretrained(folder / "adapter")
    return adapted


@pytest.mark.parametrize(
    ("make", "targets"),
    [
        (tiny_gpt2, ["c_attn", "lm_head"]),
        (tiny_gpt2, ["c_attn", "wte"]),
        (tiny_gpt2, "lm_head"),
        (tiny_gpt2, r".*\.wte"),
    ],
)
def test_a_tied_target_is_refused_at_load_and_before_training(make, targets, tmp_path):
    adapted = adapter(tmp_path, make, target_modules=targets, fan_in_fan_out=True)
    name = "lm_head" if "lm_head" in str(targets) else "transformer.wte"
    assert tied_names(adapted) == [name]
    with pytest.raises(UserError, match=rf"adapter cannot be merged: .* by \d.* It changes {name}, which other parts"):
        load_model(tmp_path / "adapter", device="cpu")
    model = make()
    before = few_logits(model)
    with pytest.raises(UserError, match=rf"lora.target_modules: {name} of GPT2LMHeadModel is tied.*modules_to_save"):
        add_lora(model, LoRA(target_modules=targets))
    assert torch.equal(few_logits(model), before)
    assert not any("lora" in name for name, _ in model.named_parameters())


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (tiny_gpt2, {"target_modules": ["c_attn"], "fan_in_fan_out": True}),
        (untied_gpt2, {"target_modules": ["lm_head"]}),
        (untied_gpt2, {"target_modules": ["wte"]}),
        (tiny_llama, {"target_modules": ["q_proj", "lm_head", "embed_tokens"]}),
        (tiny_llama, {"target_modules": "all-linear", "use_rslora": True}),
        (tiny_llama, {"target_modules": ["q_proj"], "use_dora": True}),
        (tiny_llama, {"target_modules": ["q_proj"], "trainable_token_indices": [5, 9]}),
        (tiny_gpt2, {"target_modules": ["c_attn"], "fan_in_fan_out": True, "modules_to_save": ["lm_head"]}),
        (tiny_gpt2, {"target_modules": ["c_attn"], "fan_in_fan_out": True, "modules_to_save": ["wte"]}),
        (tiny_llama, {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens"]}),
    ],
)
def test_other_targets_are_merged_exactly(make, options, tmp_path):
    adapted = adapter(tmp_path, make, **options)
    with torch.no_grad():
        expected = adapted(IDS).logits
        model, tokenizer = load_model(tmp_path / "adapter", device="cpu")
        torch.testing.assert_close(model(IDS).logits, expected, atol=1e-4, rtol=1e-4)
        assert (make()(IDS).logits - expected).abs().max() > 0.1  # the adapter is not a no-op
        model.save_pretrained(tmp_path / "merged")  # a head of its own stays one
        tokenizer.save_pretrained(tmp_path / "merged")
        again, _ = load_model(tmp_path / "merged", device="cpu")
        torch.testing.assert_close(again(IDS).logits, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_rounding_in_any_dtype_is_no_difference(dtype, tmp_path):
    adapter(tmp_path, tiny_llama, target_modules="all-linear")
    model, _ = load_model(tmp_path / "adapter", device="cpu", dtype=dtype)
    assert str(model.dtype) == f"torch.{dtype}"


def test_the_check_has_a_tolerance_for_each_dtype():
    logits = torch.tensor([[-4.0, 3.0]])  # norm 5
    for dtype, within, beyond in [
        (torch.float64, 4e-9, 6e-9),
        (torch.float32, 4e-3, 6e-3),
        (torch.float16, 0.28, 0.32),
        (torch.bfloat16, 0.9, 1.1),
    ]:
        near, far = (logits.double() + torch.tensor([by, 0.0]) for by in (within, beyond))
        check_same_logits(logits.to(dtype), near.to(dtype), "it", [])
        for wrong, tied in ((far, []), (near, ["lm_head"])):
            with pytest.raises(UserError, match=r"it cannot be merged: .* where the largest is 4"):
                check_same_logits(logits.to(dtype), wrong.to(dtype), "it", tied)
    with pytest.raises(UserError, match="it gives logits that are not finite"):
        check_same_logits(logits * torch.nan, logits, "it", [])
    with pytest.raises(UserError, match="by nan"):
        check_same_logits(logits, logits * torch.nan, "it", [])


def test_checking_leaves_a_model_in_training_as_it_was():
    model = add_lora(tiny_llama(), LoRA(r=4, lora_dropout=0.1, init_lora_weights=False)).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    check_merges(model, "it")
    assert model.training
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_an_export_that_would_be_another_model_is_refused(tmp_path):
    model = tiny_gpt2()
    module = FinetuneModule(model, tiny_tokenizer(), lora=LoRA(r=2, target_modules=["c_attn"], init_lora_weights=False))
    module.export(tmp_path / "good")
    assert (tmp_path / "good/adapter_model.safetensors").is_file()
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=["lm_head"], init_lora_weights=False)
    module.model = get_peft_model(tiny_gpt2(), config)  # as someone might who goes around add_lora
    with pytest.raises(UserError, match=r"the adapter for .*bad cannot be merged"):
        module.export(tmp_path / "bad")
    assert not (tmp_path / "bad").exists()
