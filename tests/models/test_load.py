"""load_model: every kind of name, and what is refused."""

import json
import time
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, GPT2Model, T5Config, T5EncoderModel

from hsdlab.models import load_model
from hsdlab.models.embedded import embedded_folder
from tests.tiny_checkpoints import SPECIAL, save, save_adapter, save_gguf, tiny_gpt2, tiny_llama, tiny_tokenizer

IDS = torch.arange(3, 27).view(2, 12)  # (rows, length)
FAMILIES = {
    "llama": (tiny_llama, ["q_proj", "v_proj", "down_proj"]),
    "gpt2": (tiny_gpt2, ["c_attn", "mlp.c_proj"]),
}


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_gives_the_same_model_ready_for_decoding(family, tmp_path):
    original = FAMILIES[family][0]()
    save(original, tmp_path)
    model, tokenizer = load_model(tmp_path, device="cpu")
    torch.testing.assert_close(logits(model), logits(original), atol=0, rtol=0)
    assert not model.training
    assert tokenizer.padding_side == "left"
    assert tokenizer.pad_token == tokenizer.eos_token == SPECIAL[1]
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id
    ids = tokenizer(["hello", "a"], padding=True)["input_ids"]
    assert [tokenizer.decode(row) for row in ids] == ["hello", SPECIAL[1] + "a"]  # hell o


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        ("float32", torch.float32),
        ("bfloat16", torch.bfloat16),
        ("float16", torch.float16),
        ("float64", torch.float64),
        ("auto", torch.bfloat16),  # as stored here
    ],
)
def test_dtype(dtype, expected, tmp_path):
    save(tiny_llama().to(torch.bfloat16), tmp_path)
    model, _ = load_model(str(tmp_path), dtype=dtype, device="cpu")
    assert {parameter.dtype for parameter in model.parameters()} == {expected}


def test_device_auto_takes_the_gpu_or_else_the_cpu(tmp_path):
    model, _ = load_model(save(tiny_llama(), tmp_path))
    assert model.device.type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_gguf_file_gives_the_same_model_and_tokenizer(dtype, tmp_path):
    original = tiny_llama()
    model, tokenizer = load_model(save_gguf(original, tmp_path / "tiny.gguf"), dtype=dtype, device="cpu")
    torch.testing.assert_close(logits(model.float()), logits(original), atol=1e-5, rtol=0)
    assert tokenizer("hello world")["input_ids"] == tiny_tokenizer()("hello world")["input_ids"]
    assert (tokenizer.padding_side, tokenizer.pad_token) == ("left", SPECIAL[1])
    model.save_pretrained(tmp_path / "again")  # refused by transformers while weights are packed


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("given", ["as the name", "beside its base"])
def test_an_adapter_is_merged(family, given, tmp_path):
    make, targets = FAMILIES[family]
    base = save(make(), tmp_path / "base")
    adapted = save_adapter(base, make(), tmp_path / "adapter", targets)
    if given == "as the name":
        model, _ = load_model(tmp_path / "adapter", device="cpu")
    else:
        model, _ = load_model(base, adapter=tmp_path / "adapter", device="cpu")
    torch.testing.assert_close(logits(model), logits(adapted), atol=1e-4, rtol=1e-4)
    assert (logits(model) - logits(make())).abs().max() > 0.1  # the adapter is not a no-op
    assert type(model) is type(make())
    assert not model.training
    assert all(parameter.requires_grad for parameter in model.parameters())  # as of any loaded model


def test_an_adapter_remembers_an_embedded_base_by_its_name(tmp_path, monkeypatch):
    folder = save(tiny_llama(), tmp_path / "base")
    monkeypatch.setattr("hsdlab.models.load.embedded_folder", {"embedded:tiny": folder}.__getitem__)
    model, _ = load_model("embedded:tiny", device="cpu")
    adapted = save_adapter(model.name_or_path, model, tmp_path / "adapter", ["q_proj"])
    assert json.loads((tmp_path / "adapter/adapter_config.json").read_text())["base_model_name_or_path"] == (
        "embedded:tiny"
    )
    merged, _ = load_model(tmp_path / "adapter", device="cpu")
    torch.testing.assert_close(logits(merged), logits(adapted), atol=1e-4, rtol=1e-4)


def test_the_embedded_model_is_a_real_language_model():
    """SmolLM2-135M-Instruct: 30 layers (arXiv:2502.02737), and it knows a capital."""
    try:
        embedded_folder("embedded:smollm2-135m")
    except RuntimeError as error:
        pytest.skip(f"not in the cache, and no network to fetch it: {error}")
    model, tokenizer = load_model("embedded:smollm2-135m", dtype="float32", device="cpu")
    assert model.config.num_hidden_layers == 30
    assert sum(parameter.numel() for parameter in model.parameters()) == 134_515_008
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    tokens = model.generate(**prompt, max_new_tokens=2, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert tokenizer.decode(tokens) == " Paris."
    text = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert text.endswith("<|im_start|>user\nHi<|im_end|>\n")


# What is refused, and with which words.


def test_unknown_names_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"'embedded:gpt9'; there are embedded:smollm2-135m, embedded:all"):
        load_model("embedded:gpt9")
    for missing in ["./model", "../model", "/no/such/model", "~/no-such-model", "runs/june/model"]:
        with pytest.raises(FileNotFoundError, match=r"no model folder or .gguf file at /"):
            load_model(missing)
    with pytest.raises(FileNotFoundError, match=r"no .gguf file at /"):
        load_model("model.gguf")
    Path("notes.txt").touch()
    with pytest.raises(ValueError, match=r"notes.txt is a file; expected a model folder"):
        load_model("notes.txt")


@pytest.mark.parametrize("offline", ["0", "1"])
def test_an_unreachable_hub_is_reported_at_once(offline, monkeypatch):
    """Without the one quick question, transformers retries for 23 s."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline == "1")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    begin_s = time.perf_counter()
    with pytest.raises(ConnectionError, match=r"'no-one/no-model' is not a local folder .* hub cannot be reached"):
        load_model("no-one/no-model")
    assert time.perf_counter() - begin_s < 5


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("config.json", "is not a model folder: it has no config.json"),
        ("model.safetensors", r"has no weights: expected \*.safetensors or pytorch_model\*.bin"),
        ("tokenizer", "has no tokenizer: expected a tokenizer.json"),
    ],
)
def test_an_incomplete_folder_is_refused(missing, message, tmp_path):
    save(tiny_gpt2(), tmp_path)
    for file in tmp_path.glob(f"{missing}*"):
        file.unlink()
    with pytest.raises(FileNotFoundError, match=message):
        load_model(tmp_path)


def test_other_kinds_of_models_are_refused(tmp_path):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    bert = save(BertForMaskedLM(BertConfig(**sizes)), tmp_path / "bert")
    t5 = save(T5EncoderModel(T5Config(d_model=16, d_kv=8, d_ff=16, num_layers=1)), tmp_path / "t5")
    headless = save(GPT2Model(tiny_gpt2().config), tmp_path / "headless")
    for folder in (bert, t5, headless):
        with pytest.raises(ValueError, match=f"decodes language models, .*{folder.name} is a"):
            load_model(folder)


def test_missing_weights_are_not_made_up(tmp_path):
    model = tiny_llama()
    del model.model.layers[1].mlp.up_proj.weight
    save(model, tmp_path)
    with pytest.raises(ValueError, match=r"lacks weights for model.layers.1.mlp.up_proj.weight"):
        load_model(tmp_path)


def test_code_in_a_model_folder_is_not_run(tmp_path):
    config = {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Mine"}, "architectures": ["Mine"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "mine.py").write_text("raise SystemExit('this was run')")
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ValueError, match="custom code"):
        load_model(tmp_path)


def test_unknown_dtype_or_device_is_refused(tmp_path):
    save(tiny_llama(), tmp_path)
    with pytest.raises(ValueError, match="unknown dtype 'int3'; expected one of float32, bfloat16"):
        load_model(tmp_path, dtype="int3")
    with pytest.raises(ValueError, match="device 'gpu' cannot be used"):
        load_model(tmp_path, device="gpu")
    with pytest.raises(ValueError, match="device 'cuda:77' cannot be used"):
        load_model(tmp_path, device="cuda:77")


def test_unusable_adapters_are_refused(tmp_path):
    base = save(tiny_llama(), tmp_path / "base")
    with pytest.raises(FileNotFoundError, match=r"no adapter at .*: expected a folder"):
        load_model(base, adapter=tmp_path / "nothing")
    save_adapter(base, tiny_llama(), tmp_path / "adapter", ["q_proj"])
    file = tmp_path / "adapter/adapter_config.json"
    file.write_text(file.read_text().replace(json.dumps(str(base)), "null"))
    with pytest.raises(ValueError, match="does not name its base model"):
        load_model(tmp_path / "adapter")


def test_a_prompt_tuning_adapter_cannot_be_merged(tmp_path):
    from peft import PromptTuningConfig, get_peft_model

    base = save(tiny_llama(), tmp_path / "base")
    config = PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")
    get_peft_model(tiny_llama(), config).save_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match="cannot be merged: it is PROMPT_TUNING, not LoRA"):
        load_model(base, adapter=tmp_path / "adapter")
