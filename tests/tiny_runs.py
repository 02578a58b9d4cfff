"""A tiny model folder and a tiny JSON Lines folder for whole runs, and the command line without a subprocess."""

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

import hsdlab.modules.decode
from hsdlab.cli import EvaluateCLI, main
from tests.tiny_checkpoints import save, tiny_llama

EXAMPLES = 5


def write_examples(folder: Path, number: int = EXAMPLES) -> Path:
    """Write a test and a validation split of mixed lengths; every example has two references."""
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("validation", "test"):
        lines = [
            json.dumps(
                {"id": f"{split}-{i}", "source": "hello " * (1 + 3 * i % EXAMPLES), "references": ["a hello", "hell"]}
            )
            for i in range(number)
        ]
        (folder / f"{split}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


def options(folder: Path) -> list[str]:
    """Write model and data into the folder; give the options that run them: ROUGE and BLEU, two beams."""
    save(tiny_llama(), folder / "model")
    write_examples(folder / "data")
    return [
        f"--model.name={folder / 'model'}",
        "--model.max_new_tokens=6",
        "--model.num_beams=2",
        "--model.metrics=[rouge,bleu]",
        "--data=JSONLines",
        f"--data.folder={folder / 'data'}",
        "--data.batch_size=2",
        "--trainer.accelerator=cpu",
        "--trainer.enable_progress_bar=false",
    ]


def run(monkeypatch, *args: str, cli: type[Any] = EvaluateCLI) -> Any:
    """Run the command line in this process, as `python evaluate.py` would."""
    monkeypatch.setattr(sys, "argv", ["evaluate.py"])
    return cli(args)


class ParseOnly(EvaluateCLI):
    """Parses the command line and stops."""

    def before_instantiate_classes(self) -> None: ...

    def instantiate_classes(self) -> None: ...

    def after_instantiate_classes(self) -> None: ...

    def _run_subcommand(self, subcommand: str) -> None: ...


def read_records(file: Path) -> list[dict]:
    """Read a predictions file."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def without_costs(records: Iterable[dict]) -> list[dict]:
    """Return the records without what decoding cost: times differ from run to run."""
    left_out = ("batch", "schema_version", "hash")
    return [{name: value for name, value in record.items() if name not in left_out} for record in records]


def refusal(monkeypatch: Any, capsys: Any, output: Path, *args: str) -> str:
    """Run `main`, expect that it ends before a model is loaded or the output folder made, and return what it says."""
    monkeypatch.setattr(sys, "argv", ["evaluate.py"])
    monkeypatch.setattr(hsdlab.modules.decode, "load_model", lambda *a, **k: pytest.fail("the model was loaded"))
    with pytest.raises(SystemExit) as end:
        main([*args, f"--output={output}"])
    assert not output.exists()
    code = end.value.code
    return code if isinstance(code, str) else capsys.readouterr().err
