"""Killed and resumed runs, by fault injection: the same validations, curves, best state and last weights."""

import os
from itertools import product
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import hsdlab.records.files
from hsdlab.errors import RunError
from hsdlab.modules import Checkpoints, LoRA
from hsdlab.modules.checkpoint_files import CheckpointFiles, read_checkpoint
from hsdlab.modules.checkpoints import state_in
from hsdlab.modules.event_files import continue_events
from tests.law_cells import in_turns
from tests.modules.test_finetune import Toy, module

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
MODULE = {"lora": LoRA(r=4, lora_dropout=0.2), "generate_every": 2}


class Killed(BaseException):
    """A kill: no handler of an Exception sees it."""


class Kill(Callback):
    """Kills at the n-th call of a hook, or of a function of the checkpoints."""

    def __init__(self, hook, number):
        self.left = number
        if hasattr(Callback, hook):
            setattr(self, hook, self._count)

    def _count(self, *args, **kwargs):
        self.left -= 1
        if self.left == 0:
            raise Killed


def start(folder, every, options, kill=None, resumed=False, more=()):
    """Run six batches an epoch, three epochs, into a folder; return the Trainer, the module and the checkpoints."""
    checkpoints = Checkpoints(folder / "checkpoints", every)
    logger = TensorBoardLogger(folder)
    path = folder / "checkpoints" / "last.ckpt" if resumed else None
    path = path if path and path.exists() else None
    if path:
        continue_events([logger], state_in(read_checkpoint(path), path)["events"], writes=True)
    elif resumed:  # nothing was there to go on with: the folder is begun anew
        for file in folder.rglob("events.*"):
            file.unlink()
    callbacks = [LearningRateMonitor(), *more, *([kill] if kill else []), checkpoints]
    trainer = Trainer(
        accelerator="cpu",
        callbacks=callbacks,
        logger=logger,
        enable_progress_bar=False,
        enable_model_summary=False,
        gradient_clip_val=1.0,
        **{"max_epochs": 3, "log_every_n_steps": 1, **options},
    )
    tested = module(**MODULE)
    trainer.fit(tested, datamodule=Toy(), ckpt_path=path)
    return trainer, tested, checkpoints


def curves(folder):
    """Every point of every curve, with its step, as the files hold them; the throughput left out."""
    points = []
    for file in sorted(folder.rglob("events.*")):
        events = EventAccumulator(str(file), purge_orphaned_data=False).Reload()
        for tag in events.Tags()["scalars"]:
            if tag not in ("train/tokens_per_second", "epoch"):
                points += [(tag, event.step, pytest.approx(event.value, abs=1e-6)) for event in events.Scalars(tag)]
    return sorted(points, key=lambda point: point[:2])


def outcome(trainer, tested, checkpoints):
    """What a run comes to: its best state and its last weights."""
    best = read_checkpoint(checkpoints.best)
    return {
        "best": (checkpoints.best_step, checkpoints.best_score),
        "best of the file": (best["global_step"], state_in(best, "")["best_score"]),
        "best weights": {name: weight.tolist() for name, weight in best["state_dict"].items()},
        "last weights": {name: weight.tolist() for name, weight in tested.named_parameters() if weight.requires_grad},
        "validations": tested._validations,
        "figures": {
            name: pytest.approx(float(value), abs=1e-6)
            for name, value in trainer.callback_metrics.items()
            if name != "train/tokens_per_second"
        },
    }


PROPORTIONS = {  # how often a validation and a checkpoint are due, in batches and steps
    "each-epoch": (4, {}),
    "in-the-epoch": (2, {"val_check_interval": 2}),
    "both-at-once": (3, {"val_check_interval": 3}),
    "over-the-epochs": (2, {"val_check_interval": 4, "check_val_every_n_epoch": None}),
    "every-second-epoch": (5, {"check_val_every_n_epoch": 2}),
    "never-but-at-the-end": (100, {"val_check_interval": 0.5}),
    "accumulated": (2, {"accumulate_grad_batches": 2, "val_check_interval": 2}),
    "steps": (4, {"max_epochs": -1, "max_steps": 13, "val_check_interval": 3}),
}
KILLS = [  # hook and number of its call
    ("on_validation_start", 3),  # after the sanity check and one validation: the step's batch is done
    ("on_validation_end", 3),  # before the checkpoint of this validation
    ("on_train_batch_start", 8),
    ("on_train_batch_end", 11),
    ("on_save_checkpoint", 3),
    ("on_train_end", 1),
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Unbroken runs, each made once."""
    made = {}

    def run(name):
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            every, options = PROPORTIONS[name]
            made[name] = outcome(*start(folder, every, options)), curves(folder)
        return made[name]

    return run


OFTEN = ("both-at-once",)  # the others belong to the slow tests


@pytest.mark.parametrize(
    "name", [name if name in OFTEN else pytest.param(name, marks=pytest.mark.slow) for name in PROPORTIONS]
)
def test_a_run_killed_anywhere_comes_to_what_an_unbroken_one_does(tmp_path, whole, name):
    expected, points = whole(name)
    ours = [point[:2] for point in points if not point[0].startswith("lr-")]  # which Lightning logs at each batch
    assert len(set(ours)) == len(ours)  # each point once
    killed = 0
    for hook, number in KILLS:
        folder = tmp_path / f"{hook}-{number}"
        every, options = PROPORTIONS[name]
        try:
            start(folder, every, options, kill=Kill(hook, number))
        except Killed:
            killed += 1
        else:
            continue  # the hook is not called so often
        resumed = start(folder, every, options, resumed=True)
        assert outcome(*resumed) == expected, hook
        assert curves(folder) == points, hook
    assert killed >= 4


@pytest.mark.slow
def test_a_run_killed_again_and_again_comes_to_the_same(tmp_path, whole):
    """Each kill comes just after the run has gone on, from a checkpoint of a validation too, and before the next."""
    expected, points = whole("both-at-once")
    every, options = PROPORTIONS["both-at-once"]
    for number in (5, 1, 2, 4, 1, 1, 5):
        with pytest.raises(Killed):
            start(tmp_path, every, options, kill=Kill("on_train_batch_start", number), resumed=True)
    assert outcome(*start(tmp_path, every, options, resumed=True)) == expected
    assert curves(tmp_path) == points


def in_a_child_that_dies(run):
    """Fork; the child runs until something exits it, and cleans nothing up. Tells whether something did."""
    child = os.fork()
    if child == 0:
        try:
            run()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


def dying(function, number, half=False):
    """Have a function kill its process at the n-th call, before it or with half of a file written."""
    calls = []

    def die(*args, **kwargs):
        calls.append(args)
        if len(calls) == number:
            if half:
                args[1].write(b"PK half a checkpoint")
                args[1].flush()
            os._exit(9)
        return function(*args, **kwargs)

    return die


@pytest.mark.parametrize(("write", "number"), in_turns(product(["torch.save", "replace", "link"], [2, 3, 4]), 4))
def test_a_kill_within_a_write_leaves_what_can_be_gone_on_from(tmp_path, monkeypatch, whole, write, number):
    expected, points = whole("in-the-epoch")
    every, options = PROPORTIONS["in-the-epoch"]

    def run():
        if write == "torch.save":
            monkeypatch.setattr(torch, "save", dying(torch.save, number, half=True))
        else:
            monkeypatch.setattr(os, write, dying(getattr(os, write), number))
        start(tmp_path, every, options)

    assert in_a_child_that_dies(run)
    checkpoints = tmp_path / "checkpoints"
    last = read_checkpoint(checkpoints / "last.ckpt")  # whole
    assert last["global_step"] >= 2
    assert outcome(*start(tmp_path, every, options, resumed=True)) == expected
    assert curves(tmp_path) == points
    assert {path.name for path in checkpoints.iterdir()} == {"last.ckpt", "best.ckpt"}  # nothing half is left


def test_early_stopping_stops_a_resumed_run_where_it_stopped(tmp_path):
    def stops():
        return [EarlyStopping("val/loss", patience=1, min_delta=10.0)]

    trainer, *_ = start(tmp_path / "whole", 2, {}, more=stops())
    assert trainer.global_step == 12  # two epochs of three
    with pytest.raises(Killed):  # the validation after which it stops is in the checkpoint, the stop is not
        start(tmp_path / "out", 2, {}, kill=Kill("on_train_epoch_end", 2), more=stops())
    resumed, *_ = start(tmp_path / "out", 2, {}, resumed=True, more=stops())
    assert resumed.global_step == 12
    again, *_ = start(tmp_path / "out", 2, {}, resumed=True, more=stops())  # of a finished run
    assert again.global_step == 12
    assert curves(tmp_path / "out") == curves(tmp_path / "whole")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The checkpoints of a run."""
    folder = tmp_path_factory.mktemp("finished")
    start(folder, 4, {"max_epochs": 1})
    return folder / "checkpoints"


def test_a_run_goes_on_in_another_folder_with_its_best_state(tmp_path, finished):
    trainer = Trainer(accelerator="cpu", max_epochs=2, logger=False, callbacks=[made := Checkpoints(tmp_path, 4)])
    trainer.callbacks[:] = [made]
    trainer.fit(module(**MODULE), datamodule=Toy(), ckpt_path=finished / "last.ckpt")
    assert made.best.exists()
    assert read_checkpoint(made.best)["global_step"] == made.best_step


def test_a_best_state_of_another_run_is_refused(tmp_path, finished):
    last = read_checkpoint(finished / "last.ckpt")
    last["callbacks"]["Checkpoints"]["best_step"] = 3
    CheckpointFiles().save_checkpoint(last, tmp_path / "last.ckpt")
    (tmp_path / "best.ckpt").write_bytes((finished / "best.ckpt").read_bytes())
    trainer = Trainer(accelerator="cpu", max_epochs=2, logger=False, callbacks=[Checkpoints(tmp_path, 4)])
    with pytest.raises(RunError, match=r"best\.ckpt is of step 6 with .* says that the best was step 3"):
        trainer.fit(module(**MODULE), datamodule=Toy(), ckpt_path=tmp_path / "last.ckpt")


def test_a_full_disk_keeps_the_checkpoint_before(tmp_path, monkeypatch):
    files, path = CheckpointFiles(), tmp_path / "last.ckpt"
    checkpoint = {name: {} for name in ("state_dict", "loops", "epoch", "global_step", "pytorch-lightning_version")}
    files.save_checkpoint(checkpoint | {"epoch": 1}, path)

    def full(descriptor):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(RunError, match=rf"{path} could not be written: no space left on device"):
            files.save_checkpoint(checkpoint, path)
    free = type("Usage", (), {"free": 10})
    monkeypatch.setattr(hsdlab.records.files.shutil, "disk_usage", lambda folder: free)
    with pytest.raises(RunError, match=rf"{path} could not be written: no space left on device"):
        files.save_checkpoint(checkpoint | {"state_dict": {"w": torch.zeros(10)}}, path)
    assert read_checkpoint(path)["epoch"] == 1
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "There is no checkpoint"),
        (b"", "is empty"),
        (b"PK\x03\x04 truncated", "cannot be read"),
        ({"state_dict": {}}, "is no checkpoint of train.py: it lacks global_step"),
        ([1], "is no checkpoint of train.py"),
        (Path("x"), "holds more than weights and plain values, and hsdlab runs no code of a checkpoint"),
    ],
    ids=["none", "empty", "truncated", "foreign", "a list", "code"],
)
def test_what_is_no_checkpoint_is_said_in_a_sentence(tmp_path, content, message):
    path = tmp_path / "last.ckpt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(RunError, match=message) as refused:
        read_checkpoint(path)
    assert str(path) in str(refused.value)
    assert "weights_only" not in str(refused.value)
