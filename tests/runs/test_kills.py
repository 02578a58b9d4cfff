"""A run that is killed at any moment, or meets a full disk, and is begun again ends as if nothing had happened."""

import random
import re
import shutil
import time

import pytest

from tests.runs.kills import (
    Counted,
    FullAt,
    KilledAt,
    errors_of,
    killed_after,
    left_behind,
    two_processes,
    with_fault,
)
from tests.tiny_checkpoints import save, tiny_llama
from tests.tiny_runs import write_examples

KILLS = 10
SLOW = "{class_path: tests.runs.test_resume.Slow, init_args: {layers: %d}}"
SAMPLED = ["--model.num_beams=1", "--model.generate_kwargs={do_sample: true, temperature: 3.0}"]
pytestmark = pytest.mark.xdist_group("processes")
COMMANDS = {
    "test": ["test", "--model.metrics=[rouge,bleu]", *SAMPLED, f"--skip={SLOW % 2}"],
    "compare": ["compare", "--model.metrics=[rouge,bleu]", *SAMPLED, f"--strategies=[{SLOW % 2}, {SLOW % 1}]"],
    "fit": [
        "fit",
        "--model.lora={r: 4, lora_dropout: 0.1}",
        "--model.skip_strategies=[FullDepth, {class_path: HSD, init_args: {max_exit: 1}}]",
        "--model.learning_rate=0.01",
        "--trainer.max_epochs=3",
        "--trainer.log_every_n_steps=1",
        "--trainer.val_check_interval=3",
        "--checkpoint_every=2",
    ],
}

IN_TURN = ["test", *(pytest.param(name, marks=pytest.mark.slow) for name in ("compare", "fit"))]


class Runs:
    """The commands on a tiny model and tiny data."""

    def __init__(self, folder, examples):
        self.folder = folder
        save(tiny_llama(), folder / "model")
        write_examples(folder / "data", examples)
        shutil.copy(folder / "data" / "test.jsonl", folder / "data" / "train.jsonl")

    def args(self, kind, name):
        return [
            *COMMANDS[kind],
            f"--model.name={self.folder / 'model'}",
            "--model.max_new_tokens=6",
            "--data=JSONLines",
            f"--data.folder={self.folder / 'data'}",
            "--data.batch_size=1",
            "--trainer.accelerator=cpu",
            "--trainer.enable_progress_bar=false",
            f"--output={self.folder / name}",
            *(["--ckpt_path=last"] if kind == "fit" and (self.folder / name / "run.json").exists() else []),
        ]


def program(kind):
    return "train" if kind == "fit" else "evaluate"


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return Runs(tmp_path_factory.mktemp("small"), examples=4)


@pytest.fixture(scope="module")
def unbroken(small):
    """What each command leaves when nothing happens, and the writes that it makes."""
    made = {}

    def get(kind):
        if kind not in made:
            count = small.folder / f"{kind}.count"
            folder = small.folder / f"{kind}_whole"
            args = small.args(kind, folder.name)
            assert with_fault(program(kind), args, folder, Counted(count)) == 0
            made[kind] = left_behind(folder), count.read_text().split()
        return made[kind]

    return get


def _some(kind, writes, every):
    """Return the numbers of some writes."""
    return random.sample(range(writes), min(20, writes)) if every else random.Random(kind).sample(range(writes), 2)


def same(folder, kind, small, whole):
    """Run the command to its end; hold what it leaves against the run that was not broken."""
    assert with_fault(program(kind), small.args(kind, folder.name), folder, Counted(small.folder / "ignored")) == 0
    assert_same(left_behind(folder), whole)


def assert_same(found, whole):
    """Hold what a run leaves against what the run that was not broken left."""
    assert sorted(found) == sorted(whole)
    for name, content in whole.items():
        assert found[name] == content, name


@pytest.mark.parametrize("kind", IN_TURN)
def test_a_run_that_is_killed_in_a_write_ends_as_an_unbroken_one(kind, small, unbroken, pytestconfig):
    """Twenty writes, drawn anew each time, with `make test-all`; the same two of them else."""
    whole, writes = unbroken(kind)
    assert len(writes) > 5
    every = "not slow" not in pytestconfig.getoption("markexpr")
    for number in _some(kind, len(writes), every):
        folder = small.folder / f"{kind}_killed_{number}"
        code = with_fault(program(kind), small.args(kind, folder.name), folder, KilledAt(number))
        assert code == -9, (number, writes[number])
        try:
            same(folder, kind, small, whole)
        except (AssertionError, SystemExit) as error:
            raise AssertionError(f"killed before write {number}, {writes[number]}") from error


@pytest.mark.parametrize("kind", ["test", *(pytest.param(each, marks=pytest.mark.slow) for each in ("compare", "fit"))])
def test_a_disk_that_is_full_is_said_with_the_path_and_loses_nothing(kind, small, unbroken, pytestconfig):
    whole, writes = unbroken(kind)
    every = "not slow" not in pytestconfig.getoption("markexpr")
    for number in _some(kind, len(writes), every):
        folder = small.folder / f"{kind}_full_{number}"
        code = with_fault(program(kind), small.args(kind, folder.name), folder, FullAt(number))
        error = errors_of(folder).read_text()
        assert code == 1, (number, writes[number], error)
        assert re.search(rf"^error: .*{re.escape(str(folder))}.*[Nn]o space left", error, re.MULTILINE), error
        assert "Traceback" not in error
        try:
            same(folder, kind, small, whole)
        except AssertionError as error:
            raise AssertionError(f"full before write {number}, {writes[number]}") from error


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    return Runs(tmp_path_factory.mktemp("many"), examples=20)


@pytest.mark.slow
@pytest.mark.parametrize("kind", COMMANDS)
def test_a_run_that_is_killed_at_ten_random_moments_ends_as_an_unbroken_one(kind, many):
    folder = many.folder / f"{kind}_whole"
    began = time.monotonic()
    assert not killed_after(program(kind), many.args(kind, folder.name), seconds=300)
    seconds = time.monotonic() - began
    whole = left_behind(folder)
    kills, finished = 0, 0
    while kills < KILLS:
        folder = many.folder / f"{kind}_killed_{finished}"
        if killed_after(program(kind), many.args(kind, folder.name), random.uniform(0, seconds)):
            kills += 1
        else:
            finished += 1
            same(folder, kind, many, whole)
    same(folder, kind, many, whole)


@pytest.mark.slow
@pytest.mark.parametrize("kind", COMMANDS)
def test_two_processes_that_are_killed_at_random_moments_end_as_unbroken_ones(kind, many):
    folder = many.folder / f"{kind}_whole_2"
    began = time.monotonic()
    assert two_processes(program(kind), many.args(kind, folder.name)) == 0
    seconds = time.monotonic() - began
    whole = left_behind(folder)
    kills, finished = 0, 0
    while kills < KILLS:
        folder = many.folder / f"{kind}_killed_2_{finished}"
        if two_processes(program(kind), many.args(kind, folder.name), random.uniform(seconds / 3, seconds)) == 0:
            finished += 1
            assert_same(left_behind(folder), whole)
        else:
            kills += 1
    assert two_processes(program(kind), many.args(kind, folder.name)) == 0
    assert_same(left_behind(folder), whole)
