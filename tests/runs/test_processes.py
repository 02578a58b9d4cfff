"""Two processes give what one gives: texts, figures and one file in the order of the data."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from hsdlab.cli.train import TrainCLI
from hsdlab.decoding import shared_prompt
from tests.forked import Ended, ended_together
from tests.tiny_runs import options, read_records, run, without_costs
from tests.two_processes import FITS, OFTEN, RUNS, SELDOM, run_all

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.xdist_group("processes")  # one worker runs the two processes once, for all tests here
TIMES = ("decode_step_ms", "tokens_per_second", "prompt_ms", "prompt_s", "decode_s", "wall_s", "shared_prompt_passes")


@pytest.fixture(scope="module", autouse=True)
def _prompts_as_in_a_process_of_its_own():
    """The other processes do not hold short prompts apart, as the tests in this one do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shared_prompt, "FEWEST_TOKENS", 512)
        yield


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Of a run: what it writes in one process and in two, and what the two print. Each launch has several runs."""
    made = {}

    def get(name):
        names = OFTEN if name in OFTEN else SELDOM
        if names[0] not in made:
            made[names[0]] = launched(tmp_path_factory.mktemp("processes"), names)
        one, two, done = made[names[0]]
        return one / name, two / name, done

    return get


def launched(folder, names):
    tiny = options(folder)
    shutil.copy(folder / "data" / "test.jsonl", folder / "data" / "train.jsonl")
    validation = folder / "data" / "validation.jsonl"  # with a reference that the model meets: a quality to keep
    validation.write_text(validation.read_text(encoding="utf-8").replace('"hell"', '"hell", "m"'), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["evaluate.py"])
        run_all(folder / "one", [name for name in names if name in RUNS], tiny)
    words = [str(folder / "two"), ",".join(names), *tiny]
    if names == OFTEN:
        done = ended_together(ROOT / "tests/two_processes.py", words, cwd=ROOT)
    else:  # Lightning starts the second process
        done = subprocess.run(
            [sys.executable, "-m", "tests.two_processes", *words],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=300,
        )
        done = Ended(done.returncode, done.stdout, done.stderr)
    assert done.code == 0, done.err
    return folder / "one", folder / "two", done


def often(names):
    """The runs of `make test`, and those of `make test-all`."""
    return [pytest.param(name, marks=[pytest.mark.slow] * (name not in OFTEN)) for name in names]


def written(folder):
    """The files of a run; those of TensorBoard without the time and process in their names."""
    files = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return [path.with_name("events") if path.name.startswith("events.") else path for path in files]


def results(folders, name):
    """A file of JSON of a run in one process, and of that in two."""
    one, two, _ = folders
    return [json.loads((folder / name).read_text(encoding="utf-8")) for folder in (one, two)]


@pytest.mark.parametrize("name", often(RUNS))
def test_the_files_are_those_of_one_process(name, folders):
    folder_of_one, folder_of_two, _ = folders(name)
    one, two = sorted(written(folder_of_one)), sorted(written(folder_of_two))
    assert one == two
    for file in (path for path in one if path.suffix == ".jsonl"):
        expected, records = read_records(folder_of_one / file), read_records(folder_of_two / file)
        assert without_costs(records) == without_costs(expected)
        if file.name != "scores.jsonl":  # of the search, which has no batches
            assert [r["batch"]["number"] for r in records] == [r["batch"]["number"] for r in expected]


@pytest.mark.parametrize("name", often(["test", "sampled", "validate", "one_example"]))
def test_the_figures_are_those_of_one_process(name, folders):
    one, two = results(folders(name), "metrics.json")
    assert one.keys() == two.keys()
    for figure in one:
        if not figure.endswith(TIMES):
            assert two[figure] == pytest.approx(one[figure], rel=1e-6, abs=1e-6), figure


def test_the_comparison_is_that_of_one_process(folders):
    one, two = results(folders("compare"), "comparison.json")
    for expected, row in zip(one["rows"], two["rows"], strict=True):
        for name in ("name", "examples", "quality", "output_tokens"):
            assert row[name] == expected[name]
        for kind in ("figures", "cost"):
            costs = {name: value for name, value in expected[kind].items() if name not in TIMES}
            assert {name: row[kind][name] for name in costs} == pytest.approx(costs)


@pytest.mark.slow
def test_the_calibration_is_that_of_one_process(folders):
    one, two = results(folders("calibrate"), "calibration.json")
    for name in ("losses", "p_value", "risk_upper_bound", "passed"):
        assert [test[name] for test in two["tests"]] == [test[name] for test in one["tests"]]


@pytest.mark.slow
def test_the_tuning_is_that_of_one_process(folders):
    one, two = results(folders("tune"), "tuning.json")
    assert two["chosen"] == one["chosen"]
    assert two["settings"] == one["settings"]
    assert two["decoded"] == one["decoded"]
    assert one["decoded"]
    qualities = [[row["quality"] for row in run["comparison"]["rows"]] for run in (one, two)]
    assert qualities[0] == qualities[1]


def test_only_the_first_process_prints(folders):
    _, _, done = folders("compare")
    assert done.out.count("2 strategies over 5 examples") == 1
    assert done.out.count("Strategy 1 of 2") == 1
    assert "sync_dist=True" not in done.err  # Lightning's advice where figures are not those of all processes


@pytest.mark.parametrize("name", often(FITS))
def test_training_with_two_processes_validates_as_one_does(name, folders, monkeypatch):
    _, folder, _ = folders(name)
    config, best = folder / "config.yaml", folder / "checkpoints" / "best.ckpt"
    callbacks = torch.load(best, map_location="cpu", weights_only=True)["callbacks"]
    loss = "val/loss" if "layerskip" in name else "val/skip_loss"
    assert callbacks["Checkpoints"]["monitor"] == loss
    score = callbacks["Checkpoints"]["best_score"]
    settings = yaml.safe_load(config.read_text(encoding="utf-8"))
    settings["trainer"] |= {"devices": 1, "strategy": "auto"}
    del settings["checkpoint_every"]
    config.write_text(yaml.safe_dump(settings), encoding="utf-8")
    made = run(monkeypatch, "validate", f"--config={config}", f"--ckpt_path={best}", cli=TrainCLI)
    assert made.trainer.callback_metrics[loss] == pytest.approx(score, rel=1e-6)


def test_one_process_goes_on_with_what_two_have_left(folders, monkeypatch, capsys):
    _, out, _ = folders("test")
    records = read_records(out / "predictions.jsonl")
    for rank in (0, 1):  # as if the last batch, and the merge, had not come to be
        share = [json.dumps(r) for r in records if r["batch"]["number"] % 2 == rank and r["batch"]["number"] < 2]
        (out / f"predictions.rank{rank}.jsonl").write_text("".join(f"{line}\n" for line in share), encoding="utf-8")
    (out / "predictions.jsonl").unlink()
    run(monkeypatch, *RUNS["test"], *options(out.parents[1]), f"--output={out}")
    assert "4 of 5 predictions are done" in capsys.readouterr().out
    assert [path.name for path in out.glob("*.jsonl")] == ["predictions.jsonl"]
    assert without_costs(read_records(out / "predictions.jsonl")) == without_costs(records)
