"""Checkpoints: the last and the best state of a run. A killed run resumes as if it had not been killed.

Lightning's ModelCheckpoint writes at the end of a batch, before the batch's validation and before its figures are
logged. A run that is killed between the two never does that validation, which may have been the best, and its curves
lack a point. Where several files are kept, a kill between two writes leaves a best file that the last one does not
know.
"""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, Timer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from hsdlab.errors import RunError, UserError
from hsdlab.modules.checkpoint_files import CheckpointFiles, read_checkpoint
from hsdlab.modules.event_files import events_on_disk
from hsdlab.modules.finite import check_finite
from hsdlab.records.files import whole_file

LAST, BEST = "last.ckpt", "best.ckpt"


class Checkpoints(Checkpoint):
    """Writes last.ckpt, from which a run resumes, and best.ckpt, the state with the lowest validation loss.

    last.ckpt is written every `every_steps` steps, after each validation that is the best so far, and at the end of the
    training. It is written only when its step is complete: its validation, if there is one, and its figures in the log.
    The best state is first written as last.ckpt, and best.ckpt is made from that file. So best.ckpt is at every moment
    the file that last.ckpt names, or can be made from last.ckpt. A state that is not finite is never written.

    Args:
        folder: Folder of both files. A missing folder is created.
        every_steps: Optimizer steps between two writes of last.ckpt.
        monitor: Name of the logged validation figure that should be low.

    Attributes:
        best_step: Optimizer step of best.ckpt. None before the first validation.
        best_score: Value of `monitor` at that step. Infinity before the first validation.
    """

    def __init__(self, folder: str | Path, every_steps: int, monitor: str = "val/loss") -> None:
        self.last, self.best = Path(folder) / LAST, Path(folder) / BEST
        self.every_steps = every_steps
        self.monitor = monitor
        self.best_step: int | None = None
        self.best_score = float("inf")
        self._written_step: int | None = None
        self._rest: dict[str, Any] = {}  # of the state: what only the Trainer knows
        self._figures: dict[str, Tensor] = {}  # that the run before had logged

    # When to write ---------------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Install `CheckpointFiles`, and a call at the complete end of a batch, for which Lightning has no hook."""
        if stage != "fit":
            return
        trainer.strategy.checkpoint_io = CheckpointFiles()
        loop = trainer.fit_loop.epoch_loop
        ends = type(loop).on_advance_end

        def on_advance_end(data_fetcher: Any) -> None:
            ends(loop, data_fetcher)
            self._after_batch(trainer)

        loop.on_advance_end = on_advance_end

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Restore the Trainer."""
        vars(trainer.fit_loop.epoch_loop).pop("on_advance_end", None)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the logged figures of the interrupted run; refuse a validation between the batches of one step.

        Raises:
            UserError: A validation falls between the accumulated batches of a step. No run could resume from it.
        """
        trainer.callback_metrics.update(self._figures)
        accumulated, interval = trainer.accumulate_grad_batches, trainer.val_check_batch
        batches = trainer.num_training_batches
        by_epoch = trainer.check_val_every_n_epoch is not None
        if accumulated == 1 or not trainer.enable_validation or not isinstance(interval, int):
            return
        if (by_epoch and interval == batches) or (
            interval % accumulated == 0 and (by_epoch or not batches % accumulated)
        ):
            return
        raise UserError(
            f"--trainer.val_check_interval={trainer.val_check_interval} validates every {interval} batches, "
            f"in the middle of a step of {accumulated} batches (--trainer.accumulate_grad_batches): give a multiple of "
            f"{accumulated}{'' if by_epoch else f'; the {batches} batches of an epoch must be a multiple of it too'}."
        )

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the logged figures where the resumed run had already trained to the end."""
        if not trainer.callback_metrics:
            trainer.callback_metrics.update(self._figures)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the state if it is the best, or if it is due.

        Raises:
            RunError: The validation figure is not finite, or the file cannot be written.
        """
        if trainer.sanity_checking or trainer.fast_dev_run or trainer.state.fn != TrainerFn.FITTING:
            return
        score = float(trainer.callback_metrics[self.monitor])
        check_finite(torch.tensor(score), f"{self.monitor} after step {trainer.global_step}")
        is_best = score < self.best_score
        if is_best:
            self.best_step, self.best_score = trainer.global_step, score
        if is_best or self._is_due(trainer):
            self._write(trainer)
        if is_best:
            if trainer.is_global_zero:
                _copy(self.last, self.best)
            trainer.strategy.barrier("best.ckpt is there")

    def _after_batch(self, trainer: Trainer) -> None:
        if not trainer.fast_dev_run and self._is_due(trainer):
            self._write(trainer)

    def _is_due(self, trainer: Trainer) -> bool:
        step = trainer.global_step
        if step == 0 or step == self._written_step:
            return False
        last_batch = trainer.fit_loop.batch_idx + 1 >= trainer.num_training_batches
        stops = trainer.should_stop and trainer.fit_loop._can_stop_early
        epochs = trainer.max_epochs if trainer.max_epochs is not None else -1
        ends = (last_batch and trainer.current_epoch + 1 >= epochs >= 0) or trainer.max_steps == step or stops
        return step % self.every_steps == 0 or ends

    def _write(self, trainer: Trainer) -> None:
        for name, weight in trainer.lightning_module.named_parameters():
            if weight.requires_grad:
                check_finite(weight, f"{name} after step {trainer.global_step}")
        figures = {name: value.detach().cpu().clone() for name, value in trainer.callback_metrics.items()}
        timers = [callback for callback in trainer.callbacks if isinstance(callback, Timer)]
        out_of_time = any((left := timer.time_remaining()) is not None and left <= 0 for timer in timers)
        self._rest = {
            "figures": figures,
            "should_stop": trainer.should_stop and not out_of_time,  # the resumed run may get more time
            "events": events_on_disk(trainer.loggers) if trainer.is_global_zero else [],
        }
        trainer.save_checkpoint(self.last)
        self._rest = {}
        self._written_step = trainer.global_step

    # Resuming --------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the best step, its score, and what only the Trainer knows, for the checkpoint."""
        return {"best_step": self.best_step, "best_score": self.best_score, "monitor": self.monitor, **self._rest}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Resume from a checkpoint, and put the best.ckpt that it names into this run's folder.

        Raises:
            RunError: There is no best.ckpt beside the checkpoint, or it is of another run.
        """
        if trainer.state.fn != TrainerFn.FITTING:
            return
        state = state_in(checkpoint, trainer.ckpt_path)
        self.best_step, self.best_score = state["best_step"], state["best_score"]
        self._written_step = checkpoint["global_step"]
        self._figures = state["figures"]
        trainer.should_stop = state["should_stop"]
        if self.best_step is not None and trainer.is_global_zero:
            self._bring_best(Path(str(trainer.ckpt_path)), checkpoint["global_step"])

    def _bring_best(self, resumed: Path, step: int) -> None:
        """Make best.ckpt from the resumed checkpoint, or take the best.ckpt beside it."""
        source = resumed if self.best_step == step else resumed.with_name(BEST)
        if source != resumed:
            found = read_checkpoint(source, mmap=True)
            state = state_in(found, source)
            if (found["global_step"], state["best_score"]) != (self.best_step, self.best_score):
                raise RunError(
                    f"{source} is of step {found['global_step']} with {self.monitor}={state['best_score']:.6g}, but "
                    f"{resumed} says that the best was step {self.best_step} with {self.best_score:.6g}: they are not "
                    "of one run. Copy the right one there, or start over without --ckpt_path."
                )
        if not (self.best.exists() and source.samefile(self.best)):
            _copy(source, self.best)


def state_in(checkpoint: Mapping[str, Any], path: Any) -> dict[str, Any]:
    """Read what `Checkpoints` wrote into a checkpoint.

    Args:
        checkpoint: Of `read_checkpoint`.
        path: Its file, for the message.

    Returns:
        best_step, best_score, and what the resumed run restores, which is figures (logged values by name), should_stop
        and events (see `continue_events`). The last three have empty defaults.

    Raises:
        RunError: The checkpoint holds nothing of `Checkpoints`.
    """
    state = checkpoint.get("callbacks", {}).get(Checkpoints.__qualname__)
    if not isinstance(state, dict) or not {"best_step", "best_score"} <= state.keys():
        raise RunError(
            f"A run cannot resume from {path}: it does not say what the best state of its run is, as the last.ckpt and "
            "best.ckpt of train.py do. Start over without --ckpt_path."
        )
    return {"figures": {}, "should_stop": False, "events": [], **state}


def _copy(source: Path, target: Path) -> None:
    """Make a hard link to a file, or a copy where the file system has no hard links."""
    with whole_file(target) as unfinished:
        try:
            os.link(source, unfinished)
        except OSError:
            shutil.copyfile(source, unfinished)
