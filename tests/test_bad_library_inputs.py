"""Bad inputs to the Python library: each is a UserError that names what was got and what to do."""

import json
from pathlib import Path

import pytest
import torch

from hsdlab import CALM, HSD, FullDepth, ScheduledStrategy, SkipDecode, UserError, generate, load_model, replay
from hsdlab.data import DataFolder, JSONLines
from hsdlab.metrics import BLEU, ROUGE
from hsdlab.modules import DecodeModule, FinetuneModule, LoRA
from hsdlab.testing import tiny_model
from tests.tiny_checkpoints import save, tiny_llama, tiny_tokenizer

IDS = torch.tensor([[7, 8, 9]])


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama", num_layers=3, dtype=torch.float32)


@pytest.fixture
def folder(tmp_path):
    return save(tiny_llama(), tmp_path / "model")


class Returns(ScheduledStrategy):
    """Its layers are whatever it was made with."""

    def __init__(self, layers: object) -> None:
        self.layers = layers

    def layers_at(self, step, num_layers, max_steps):
        return self.layers


DECODES = {  # keywords of `generate`, and what the error says
    "strategy-as-text": ({"strategy": "HSD"}, "HSD"),
    "strategy-as-class": ({"strategy": HSD}, "HSD"),
    "no-strategy": ({"strategy": None}, "strategy"),
    "too-deep": ({"strategy": HSD(max_exit=9)}, "max_exit=9 is beyond"),
    "layers-none": ({"strategy": Returns(None)}, "a NoneType as the layers of step 0"),
    "layers-beyond": ({"strategy": Returns([7])}, r"layers \[7\]"),
    "layers-negative": ({"strategy": Returns([-1])}, r"-1"),
    "layers-floats": ({"strategy": Returns([0.5])}, r"0\.5"),
    "layers-empty": ({"strategy": Returns([])}, "no layer"),
    "no-length": ({"max_new_tokens": None}, "max_new_tokens"),
    "length-0": ({"max_new_tokens": 0}, "whole number, at least 1"),
    "length-negative": ({"max_new_tokens": -4}, "whole number, at least 1"),
    "beyond-the-context": ({"max_new_tokens": 1000}, "context of 64"),
    "ids-of-one-dimension": ({"input_ids": IDS[0]}, r"input_ids: got \(3,\)"),
    "ids-empty": ({"input_ids": IDS[:, :0]}, "not empty"),
    "ids-as-list": ({"input_ids": [[7, 8]]}, "got list"),
    "ids-beyond-the-vocabulary": ({"input_ids": IDS + 1000}, "1009"),
    "mask-of-another-shape": ({"attention_mask": torch.ones(1, 2)}, r"got shape \(1, 2\)"),
    "right-padded": ({"attention_mask": torch.tensor([[1, 1, 0]])}, "left padding"),
    "no-cache": ({"use_cache": False}, "use_cache=False"),
    "assisted": ({"prompt_lookup_num_tokens": 3}, "prompt lookup"),
    "static-cache": ({"cache_implementation": "static"}, "cache_implementation='static'"),
    "guided": ({"guidance_scale": 2.0}, "guidance_scale=2.0"),
    "stop-strings-alone": ({"stop_strings": ["."]}, "give the tokenizer"),
}


@pytest.mark.parametrize(("keywords", "says"), DECODES.values(), ids=DECODES)
def test_generate(keywords, says, model):
    call = {"input_ids": IDS, "strategy": FullDepth(), "max_new_tokens": 4, **keywords}
    with pytest.raises(UserError, match=says):
        generate(model, **call)


CONSTRUCTORS = {
    "num_skipped": (lambda: HSD(num_skipped=-1), "num_skipped=-1"),
    "min_exit": (lambda: HSD(min_exit=5, max_exit=2), "min_exit=5"),
    "max_exit-text": (lambda: HSD(max_exit="all"), "max_exit='all'"),
    "warmup": (lambda: SkipDecode(warmup=-1), "warmup=-1"),
    "threshold-nan": (lambda: CALM(threshold=float("nan")), "threshold=nan"),
    "threshold-infinite": (lambda: CALM(threshold=float("inf")), "threshold=inf"),
    "measure": (lambda: CALM(measure="sure"), "measure='sure'"),
    "schedule": (lambda: CALM(schedule="never"), "schedule='never'"),
    "lora-rank": (lambda: LoRA(r=0), r"r=0"),
    "lora-alpha": (lambda: LoRA(lora_alpha=float("inf")), "lora_alpha=inf"),
    "batch-size": (lambda: JSONLines(folder=".", batch_size=0), "batch_size=0"),
    "limit": (lambda: JSONLines(folder=".", limit=0), "limit=0"),
    "rouge-pairs": (lambda: ROUGE().update(["a"], [["a"], ["b"]]), "1"),
    "rouge-references": (lambda: ROUGE().update(["a"], ["a"]), "list"),
    "bleu-nothing": (lambda: BLEU().update(["a"], [[]]), "reference"),
}


@pytest.mark.parametrize(("make", "says"), CONSTRUCTORS.values(), ids=CONSTRUCTORS)
def test_constructors_and_metrics(make, says):
    with pytest.raises(UserError, match=says):
        make()


MODULES = {
    "max_new_tokens": (lambda m, t: DecodeModule(m, t, max_new_tokens=0), "max_new_tokens=0"),
    "num_beams": (lambda m, t: DecodeModule(m, t, num_beams=0), "num_beams=0"),
    "generate_kwargs": (lambda m, t: DecodeModule(m, t, generate_kwargs={"num_beam": 4}), "num_beam"),
    "metrics": (lambda m, t: DecodeModule(m, t, metrics=["rogue"]), "rogue"),
    "learning_rate": (lambda m, t: FinetuneModule(m, t, learning_rate=float("inf")), "learning_rate=inf"),
    "weight_decay": (lambda m, t: FinetuneModule(m, t, weight_decay=float("nan")), "weight_decay=nan"),
    "warmup": (lambda m, t: FinetuneModule(m, t, warmup=2.0), "warmup=2.0"),
    "skip_weights": (lambda m, t: FinetuneModule(m, t, skip_strategies=[HSD(max_exit=1)], skip_weights=[-1]), "-1"),
    "distillation": (lambda m, t: FinetuneModule(m, t, distillation=0.5), "skip_strategies"),
}


@pytest.mark.parametrize(("make", "says"), MODULES.values(), ids=MODULES)
def test_modules(make, says):
    with pytest.raises(UserError, match=says):
        make(tiny_llama(), tiny_tokenizer())


def remove(name):
    return lambda folder: (folder / name).unlink()


def write(name, content):
    return lambda folder: (folder / name).write_bytes(content)


FOLDERS = {
    "no-config": (remove("config.json"), "config.json"),
    "no-weights": (remove("model.safetensors"), "no weights"),
    "empty-weights": (write("model.safetensors", b""), "cannot be read"),
    "garbage-weights": (write("model.safetensors", b"\x00" * 64), "cannot be read"),
    "no-tokenizer": (remove("tokenizer.json"), "tokenizer"),
    "garbage-config": (write("config.json", b"{"), "config.json"),
    "garbage-generation-config": (write("generation_config.json", b"[1]"), "generation_config.json"),
}


@pytest.mark.parametrize(("spoil", "says"), FOLDERS.values(), ids=FOLDERS)
def test_model_folders(spoil, says, folder):
    spoil(folder)
    with pytest.raises((UserError, FileNotFoundError), match=says):
        load_model(folder, device="cpu")


def test_devices_dtypes_and_adapters(folder, tmp_path):
    with pytest.raises(UserError, match="device 'tpu9'"):
        load_model(folder, device="tpu9")
    with pytest.raises(UserError, match="float12"):
        load_model(folder, dtype="float12", device="cpu")
    with pytest.raises((UserError, FileNotFoundError), match=str(tmp_path / "none")):
        load_model(folder, adapter=str(tmp_path / "none"), device="cpu")


@pytest.mark.parametrize(
    ("executed", "says"),
    [
        (torch.ones(1, 3, 2, dtype=torch.bool), r"\(1, 3, 2\)"),
        (torch.ones(1, 3, 3), "float32"),
        ([[True]], "list"),
    ],
    ids=["shape", "dtype", "list"],
)
def test_replay(executed, says, model):
    with pytest.raises(UserError, match=says):
        replay(model, input_ids=IDS, executed=executed)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"{", "line 1"),
        (b"[1]\n", "line 1"),
        (json.dumps({"id": "a", "source": "x"}).encode(), "references"),
        (b"\xff\xfe{\x00", "UTF-16"),
        (b"", "is empty"),
    ],
    ids=["half", "list", "no-references", "utf-16", "empty"],
)
def test_data(content, says, tmp_path):
    Path(tmp_path / "test.jsonl").write_bytes(content)
    with pytest.raises((UserError, FileNotFoundError), match=says):
        JSONLines(folder=str(tmp_path)).check("test")


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises((UserError, FileNotFoundError), match=str(tmp_path / "none")):
        DataFolder(folder=str(tmp_path / "none")).check("test")
