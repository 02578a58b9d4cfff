"""Safety: no code of a model, weights only, nothing outside the output folder, no network for what is local."""

import json
import re
import socket
import sys
from pathlib import Path

import pytest

import hsdlab
from hsdlab.cli.evaluate import main as evaluate
from hsdlab.cli.train import main as train
from hsdlab.errors import UserError
from hsdlab.models import load_model
from hsdlab.records.run_folder import prediction_file
from tests.tiny_checkpoints import save, tiny_llama
from tests.tiny_runs import options

SOURCES = {
    path: path.read_text(encoding="utf-8")
    for path in Path(hsdlab.__file__).parent.rglob("*.py")
    if path.name not in ("reasons.py", "laws.py")  # the advice that is left out; pickles that the law itself made
}


def test_code_of_a_model_is_never_run(tmp_path):
    folder = save(tiny_llama(), tmp_path / "model")
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="custom code"):
        load_model(folder, device="cpu")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "pattern",
    [
        r"trust_remote_code\s*=\s*True",
        r"\bpickle\.loads?\(",
        r"yaml\.(unsafe_load|full_load|load)\(",
        r"weights_only=False",
    ],
)
def test_the_code_switches_no_safeguard_off(pattern):
    assert not [path for path, text in SOURCES.items() if re.search(pattern, text)]


def test_weights_are_loaded_as_weights_only():
    calls = [call for text in SOURCES.values() for call in re.findall(r"torch\.load\([^)]*\)", text)]
    assert calls
    assert all("weights_only=True" in call for call in calls)


@pytest.mark.parametrize("name", ["../../x", "/etc/passwd", "a/b", "..", "a\\b"])
def test_no_name_of_a_strategy_leaves_the_folder(name, tmp_path):
    file = prediction_file(tmp_path, name, 1).resolve()
    assert file.parent == tmp_path / "predictions"


OFTEN, SELDOM = ["compare", "fit"], ["test", "bench", "inspect"]


@pytest.mark.parametrize("command", [*OFTEN, *(pytest.param(name, marks=pytest.mark.slow) for name in SELDOM)])
def test_a_local_model_needs_no_network(command, tmp_path, monkeypatch):
    def refuse(*args):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(sys, "argv", ["evaluate.py"])
    words = options(tmp_path)
    (tmp_path / "data/train.jsonl").write_bytes((tmp_path / "data/test.jsonl").read_bytes())
    output = f"--output={tmp_path / 'out'}"
    if command == "fit":
        words = [word for word in words if not re.match("--model.(num_beams|metrics)", word)]
        train(["fit", *words, "--trainer.max_steps=1", output])
    else:
        more = [] if command in ("test", "inspect") else ["--strategies=[FullDepth]"]
        evaluate([command, *words, *more, output])
        evaluate(["report", str(tmp_path / "out")])
    assert (tmp_path / "out").is_dir()
