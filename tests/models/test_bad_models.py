"""Model folders that are damaged, incomplete or of another kind: each is one sentence with the cause and the cure."""

import json
import pickle
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from hsdlab.errors import UserError
from hsdlab.models import load_model
from hsdlab.reasons import reason
from tests.tiny_checkpoints import save, save_adapter, save_gguf, tiny_llama, tiny_tokenizer

WEIGHTS, CONFIG, TOKENIZER = "model.safetensors", "config.json", "tokenizer.json"


class Code:
    """Unpickled, it would run."""

    def __reduce__(self):
        return (exec, ("raise SystemExit('code of a model was run')",))


def write(file, content):
    return lambda folder: (folder / file).write_bytes(content)


def truncated(file):
    return lambda folder: (folder / file).write_bytes((folder / file).read_bytes()[:-100])


def changed(file, **values):
    def change(folder):
        content = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps({k: v for k, v in (content | values).items() if v is not ...}))

    return change


def as_pickle(content):
    def change(folder):
        (folder / WEIGHTS).unlink()
        if isinstance(content, bytes):
            (folder / "pytorch_model.bin").write_bytes(content)
        else:
            torch.save(content, folder / "pytorch_model.bin")

    return change


def not_finite(folder):
    weights = load_file(folder / WEIGHTS)
    weights["model.layers.1.mlp.up_proj.weight"][3] = torch.nan
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


def longer_tokenizer(folder):
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    tokenizer.save_pretrained(folder)


def remote_code(file, key):
    return changed(file, auto_map={key: "mine.Mine"}, **({"model_type": "mine"} if file == CONFIG else {}))


AGAIN = "Copy, download or export the model again"
BAD = {
    "truncated weights": (truncated(WEIGHTS), f"its weights cannot be read .*{AGAIN}"),
    "empty weights": (write(WEIGHTS, b""), f"its weights cannot be read .*{AGAIN}"),
    "garbage weights": (write(WEIGHTS, b"garbage" * 99), f"its weights cannot be read .*{AGAIN}"),
    "an HTML page as weights": (write(WEIGHTS, b"<!doctype html>" * 99), f"its weights cannot be read .*{AGAIN}"),
    "a git-lfs pointer": (
        write(WEIGHTS, b"version https://git-lfs.github.com/spec/v1\noid x"),
        "its weights cannot be",
    ),
    "not finite": (not_finite, r"model.layers.1.mlp.up_proj.weight holds numbers that are not finite"),
    "a pickle with code": (
        as_pickle({"x": Code()}),
        "holds more than weights.* convert it to safetensors",
    ),
    "a raw pickle": (as_pickle(pickle.dumps(Code())), "holds more than weights.* convert it to safetensors"),
    "an empty pickle": (as_pickle(b""), "its weights"),
    "a garbage pickle": (as_pickle(b"garbage" * 99), "its weights"),
    "other sizes": (changed(CONFIG, hidden_size=64), "the sizes of its weights are not those of its config.json"),
    "another vocabulary": (changed(CONFIG, vocab_size=99), "the sizes of its weights"),
    "more layers": (changed(CONFIG, num_hidden_layers=4), "lacks weights for model.layers.3"),
    "an unknown type": (
        changed(CONFIG, model_type="llama9"),
        "model_type that this version of transformers",
    ),
    "no type": (changed(CONFIG, model_type=...), "model_type that this version of transformers does not know, or none"),
    "a size that is a text": (changed(CONFIG, hidden_size="wide"), "config.json does not describe a model"),
    "a config that is no JSON": (write(CONFIG, b"{"), "config.json is no JSON text"),
    "a binary config": (write(CONFIG, bytes(range(256))), "config.json"),
    "a config that is a list": (write(CONFIG, b"[]"), "config.json"),
    "an empty config": (write(CONFIG, b""), "config.json"),
    "remote code": (
        remote_code(CONFIG, "AutoConfig"),
        "needs custom code of its own .* take a model",
    ),
    "a tokenizer that is no JSON": (write(TOKENIZER, b"{"), "its tokenizer cannot be read"),
    "an empty tokenizer": (write(TOKENIZER, b""), "its tokenizer cannot be read"),
    "a binary tokenizer": (write(TOKENIZER, bytes(range(256))), "its tokenizer cannot be read"),
    "a truncated tokenizer": (truncated(TOKENIZER), "its tokenizer cannot be read"),
    "a broken tokenizer config": (write("tokenizer_config.json", b"[1"), "its tokenizer cannot be read"),
    "another tokenizer": (longer_tokenizer, "has token ids up to 261, but the model has 261 embeddings"),
    "a broken generation config": (write("generation_config.json", b"{"), "generation_config.json cannot be read"),
}
ADVICE = re.compile(r"trust_remote_code|weights_only|torch\.load|Traceback|allow_pickle")


@pytest.mark.parametrize("case", BAD)
def test_a_bad_model_folder_is_one_sentence(case, tmp_path):
    change, message = BAD[case]
    save(tiny_llama(), tmp_path)
    change(tmp_path)
    with pytest.raises(UserError, match=message) as refusal:
        load_model(tmp_path, device="cpu")
    said = str(refusal.value)
    assert str(tmp_path) in said
    assert not ADVICE.search(said)
    assert "\n" not in said
    assert len(said) < 700


@pytest.mark.parametrize("content", [b"", b"GGUF", b"GGUF" + b"\x00" * 40, b"garbage" * 50, "truncated"])
def test_a_bad_gguf_file_is_one_sentence(content, tmp_path):
    file = save_gguf(tiny_llama(), tmp_path / "tiny.gguf")
    file.write_bytes(file.read_bytes()[:-20_000] if content == "truncated" else content)
    with pytest.raises(UserError, match=rf"tiny.gguf.*(GGUF|weights).*{AGAIN}") as refusal:
        load_model(file, device="cpu")
    assert not ADVICE.search(str(refusal.value))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("adapter_config.json", b"{", "cannot be read as the configuration of an adapter"),
        ("adapter_config.json", b"[]", "cannot be read as the configuration of an adapter"),
        ("adapter_config.json", b'{"peft_type": "NEW"}', "cannot be read as the configuration of an adapter"),
        ("adapter_model.safetensors", b"", "the adapter's weights cannot be read"),
        ("adapter_model.safetensors", b"garbage" * 99, "the adapter's weights cannot be read"),
        ("adapter_model.safetensors", None, "the adapter's weights cannot be read"),
        ("generation_config.json", b"{", "generation_config.json cannot be read"),
        ("tokenizer.json", b"{", "its tokenizer cannot be read"),
    ],
)
def test_a_bad_adapter_is_one_sentence(file, content, message, tmp_path):
    base = save(tiny_llama(), tmp_path / "base")
    save_adapter(base, tiny_llama(), tmp_path / "adapter", ["q_proj"])
    if content is None:
        (tmp_path / "adapter" / file).unlink()
    else:
        (tmp_path / "adapter" / file).write_bytes(content)
    with pytest.raises(UserError, match=message) as refusal:
        load_model(base, adapter=tmp_path / "adapter", device="cpu")
    assert str(tmp_path / "adapter") in str(refusal.value)
    assert not ADVICE.search(str(refusal.value))


def test_a_librarys_advice_to_run_code_is_left_out():
    error = ValueError("It has custom code. Please pass `trust_remote_code=True` to run it.\n  Or see https://x.y now.")
    assert reason(error) == "ValueError: It has custom code"
    assert reason(RuntimeError("set weights_only=False")) == "RuntimeError"
