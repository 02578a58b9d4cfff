"""Adapters that are more than matrices: what is saved beside them is used; weights that are not loaded are refused."""

import json
import os
import warnings

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from hsdlab.errors import UserError
from hsdlab.models import load_model
from hsdlab.modules import FinetuneModule
from hsdlab.modules.lora import LoRA, add_lora
from tests.tiny_checkpoints import TOKENS, save, save_adapter, tiny_gpt2, tiny_llama, tiny_tokenizer

ADDED = ["<a>", "<b>"]
IDS = torch.tensor([[5, 9, 30, len(TOKENS), len(TOKENS) + 1, 60]])  # the added tokens among them


def tokenizer_with_added_tokens():
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ADDED})
    return tokenizer


ROWS = len(TOKENS) + len(ADDED)


def trained_with_added_tokens(folder, make, rows=ROWS, **options):
    """Write a base model, and an adapter of a model with more rows of embeddings; return the latter."""
    model = make()
    save(model, folder / "base")
    model.name_or_path = str(folder / "base")
    torch.manual_seed(5)
    model.resize_token_embeddings(rows, mean_resizing=False)
    config = LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **options)
    adapted = get_peft_model(model, config).eval()
    adapted.save_pretrained(folder / "adapter")
    tokenizer_with_added_tokens().save_pretrained(folder / "adapter")
    return adapted


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (tiny_llama, {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]}),
        (tiny_llama, {"target_modules": ["q_proj"]}),  # peft saves resized embeddings by itself
        (tiny_llama, {"target_modules": ["q_proj", "embed_tokens", "lm_head"]}),
        (tiny_llama, {"target_modules": ["q_proj"], "trainable_token_indices": [len(TOKENS), len(TOKENS) + 1]}),
        (tiny_llama, {"target_modules": ["q_proj"], "rows": 320}),  # padded to a round number
        (tiny_gpt2, {"target_modules": ["c_attn"], "fan_in_fan_out": True}),
    ],
)
def test_added_tokens_have_the_embeddings_of_the_adapter(make, options, tmp_path):
    adapted = trained_with_added_tokens(tmp_path, make, **options)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*more tokens than")
        model, tokenizer = load_model(tmp_path / "adapter", device="cpu")
    assert model.get_input_embeddings().weight.shape[0] == options.get("rows", len(TOKENS) + 2)
    assert model.config.vocab_size == options.get("rows", len(TOKENS) + 2)
    assert tokenizer.convert_tokens_to_ids(ADDED) == [len(TOKENS), len(TOKENS) + 1]
    assert tokenizer("hello<b>")["input_ids"][-1] == len(TOKENS) + 1
    with torch.no_grad():
        torch.testing.assert_close(model(IDS).logits, adapted(IDS).logits, atol=1e-4, rtol=1e-4)


def test_added_tokens_without_embeddings_get_the_mean_with_a_warning(tmp_path):
    base = save(tiny_llama(), tmp_path / "base")
    save_adapter(base, tiny_llama(), tmp_path / "adapter", ["q_proj"])
    tokenizer_with_added_tokens().save_pretrained(tmp_path / "adapter")
    with pytest.warns(UserWarning, match=r"has 2 more tokens than .* get the mean of the others"):
        model, _ = load_model(tmp_path / "adapter", device="cpu")
    weight = model.get_input_embeddings().weight.detach()
    torch.testing.assert_close(weight[-1], weight[:-2].mean(0), atol=1e-3, rtol=0)
    with pytest.warns(UserWarning, match="2 more tokens"):
        again, _ = load_model(tmp_path / "adapter", device="cpu")
    assert torch.equal(again.get_input_embeddings().weight, weight)


@pytest.mark.parametrize("given", ["as the name", "beside its base"])
def test_what_is_saved_beside_an_adapter_is_used(given, tmp_path):
    base = save(tiny_llama(), tmp_path / "base")
    folder = tmp_path / "adapter"
    save_adapter(base, tiny_llama(), folder, ["q_proj"])
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}Q: {{ m.content }}\n{% endfor %}A:"
    tokenizer.eos_token = "a"
    tokenizer.save_pretrained(folder)
    generation = tiny_llama().generation_config
    generation.update(eos_token_id=[1, 67], pad_token_id=9)
    generation.save_pretrained(folder)
    named = given == "as the name"
    model, tokenizer = load_model(folder if named else base, adapter=None if named else folder, device="cpu")
    message = [{"role": "user", "content": "x"}]
    assert tokenizer.apply_chat_template(message, tokenize=False) == "Q: x\nA:"
    assert (tokenizer.eos_token, tokenizer.padding_side) == ("a", "left")
    assert (model.generation_config.eos_token_id, model.generation_config.pad_token_id) == ([1, 67], 9)


def test_a_chat_template_alone_is_used_with_the_bases_tokenizer(tmp_path):
    base = save(tiny_llama(), tmp_path / "base")
    save_adapter(base, tiny_llama(), tmp_path / "adapter", ["q_proj"])
    (tmp_path / "adapter/chat_template.jinja").write_text("{{ messages[0].content }}!")
    _, tokenizer = load_model(tmp_path / "adapter", device="cpu")
    assert tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False) == "x!"
    assert tokenizer("hell")["input_ids"] == tiny_tokenizer()("hell")["input_ids"]


def test_an_export_of_a_resized_model_brings_its_embeddings_and_its_stop_tokens(tmp_path):
    model, _ = load_model(save(tiny_llama(), tmp_path / "base"), device="cpu")
    tokenizer = tokenizer_with_added_tokens()
    tokenizer.pad_token = tokenizer.eos_token
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.generation_config.eos_token_id = [1, 5]
    module = FinetuneModule(model, tokenizer, lora=LoRA(r=2, target_modules=["q_proj"], init_lora_weights=False))
    module.export(tmp_path / "out")
    again, tokens = load_model(tmp_path / "out", device="cpu")
    module.model.eval()
    with torch.no_grad():
        torch.testing.assert_close(again(IDS).logits, module.model(IDS).logits, atol=1e-4, rtol=1e-4)
    assert len(tokens) == len(tokenizer)
    assert again.generation_config.eos_token_id == [1, 5]


def renamed_base(folder, name):
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": name}))


@pytest.mark.parametrize("name", ["../base", "./../base", os.path.join("..", "base", "")])
def test_a_relative_base_is_looked_for_from_the_adapter(name, tmp_path, monkeypatch):
    base = save(tiny_llama(), tmp_path / "base")
    adapted = save_adapter(base, tiny_llama(), tmp_path / "adapter", ["q_proj"])
    renamed_base(tmp_path / "adapter", name)
    (tmp_path / "some/where").mkdir(parents=True)  # from where the same path leads nowhere
    monkeypatch.chdir(tmp_path / "some/where")
    model, _ = load_model(tmp_path / "adapter", device="cpu")
    ids = torch.arange(3, 15)[None]
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, adapted(ids).logits, atol=1e-4, rtol=1e-4)


def test_an_adapter_is_named_when_its_base_fails(tmp_path, monkeypatch):
    base = save(tiny_llama(), tmp_path / "base")
    save_adapter(base, tiny_llama(), tmp_path / "adapter", ["q_proj"])
    renamed_base(tmp_path / "adapter", "../nowhere")
    with pytest.raises(UserError, match=r"adapter names '../nowhere' .* no model folder at .*--model.adapter"):
        load_model(tmp_path / "adapter")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    renamed_base(tmp_path / "adapter", "no-one/nothing")
    with pytest.raises(ConnectionError, match=r"'no-one/nothing' is not .*\(the base model of the adapter .*adapter\)"):
        load_model(tmp_path / "adapter")
    renamed_base(tmp_path / "adapter", str(base))
    (base / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"weights cannot be read .*\(the base model of the adapter .*adapter\)"):
        load_model(tmp_path / "adapter")


def _drop(weights):
    del weights[next(name for name in weights if "layers.1" in name and "lora_B" in name)]


def _add(weights):
    weights["base_model.model.model.layers.9.self_attn.q_proj.lora_A.weight"] = torch.ones(4, 32)


def _cut(weights):
    name = next(name for name in weights if "lora_A" in name)
    weights[name] = weights[name][:, :-1].contiguous()


def _break(weights):
    name = next(name for name in weights if "lora_A" in name)
    weights[name] = weights[name] * torch.nan


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            _drop,
            r"cannot be loaded completely: weights are missing for .*: model.layers.1.self_attn.q_proj.lora_B.weight",
        ),
        (
            _add,
            r"cannot be loaded completely: weights have no place in .*: model.layers.9.self_attn.q_proj.lora_A.weight",
        ),
        (_cut, r"does not fit .*base: .*size mismatch.*the model that the adapter was trained on"),
        (_break, r"q_proj.lora_A.weight holds numbers that are not finite; export it again"),
    ],
)
def test_an_adapter_that_is_not_loaded_completely_is_refused(change, message, tmp_path):
    base = save(tiny_llama(), tmp_path / "base")
    save_adapter(base, tiny_llama(), tmp_path / "adapter", ["q_proj"])
    file = tmp_path / "adapter/adapter_model.safetensors"
    weights = load_file(file)
    change(weights)
    save_file(weights, file)
    with pytest.raises(UserError, match=message):
        load_model(tmp_path / "adapter", device="cpu")


def test_no_second_adapter_is_trained_on_a_model_with_one(tmp_path):
    base = save(tiny_llama(), tmp_path / "base")
    save_adapter(base, tiny_llama(), tmp_path / "adapter", ["q_proj"])
    model, tokenizer = load_model(tmp_path / "adapter", device="cpu")
    with pytest.raises(UserError, match=r"loaded with the adapter .*adapter\. A second adapter would name the base"):
        add_lora(model, LoRA())
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "merged")
    again, _ = load_model(tmp_path / "merged", device="cpu")
    assert add_lora(again, LoRA()).peft_config["default"].base_model_name_or_path == str(tmp_path / "merged")
