"""The progress of a Trainer's runs, in place of Lightning's bar: one that moves and that a log file can hold."""

import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar

from hsdlab.progress import Steps

DONE_BEFORE_S = 0.02
"""A batch that takes less was restored, not decoded: it says nothing about the time that is left."""


class ShowsProgress(ProgressBar):
    """Shows how far training, validation, testing and predicting have come, with the time that is left.

    On a terminal it is a bar whose spinner moves however long a batch takes; elsewhere a line every 30 seconds. The
    figures that a module logs with ``prog_bar=True`` stand behind it.
    """

    def __init__(self) -> None:
        super().__init__()
        self._steps: Steps | None = None
        self._enabled = True
        self._batch_began = 0.0

    def disable(self) -> None:
        """Show nothing; Lightning calls it in all processes but the first."""
        self._enabled = False

    def enable(self) -> None:
        """Show it."""
        self._enabled = True

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print a line; a module's `self.print` comes here."""
        if self._enabled:
            print(*args)

    def _begin(self, what: str, total: float, unit: str) -> None:
        self._end()
        known = 0 if total == float("inf") else int(total)
        self._steps = Steps(what, known, unit, quiet=not self._enabled)
        self._steps.__enter__()

    def _end(self, *_: Any) -> None:
        if self._steps is not None:
            self._steps.__exit__(None, None, None)
            self._steps = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin with the steps of all epochs."""
        total: float = trainer.max_steps
        if total < 0:
            epochs = trainer.max_epochs if trainer.max_epochs is not None else -1
            per_epoch = trainer.num_training_batches / trainer.accumulate_grad_batches
            total = epochs * -(-per_epoch // 1) if epochs >= 0 else 0
        self._begin("Training", total, "steps")
        if self._steps is not None:
            self._steps.skip(trainer.global_step)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Count the steps; show what the module logs for it."""
        if self._steps is not None:
            metrics = {name: value for name, value in self.get_metrics(trainer, pl_module).items() if name != "v_num"}
            self._steps.note = ", ".join(
                f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
                for name, value in metrics.items()
            )
            self._steps.advance(trainer.global_step - self._steps.done)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin, unless it is a validation within training, which shows behind the training."""
        if not trainer.sanity_checking and trainer.state.fn != "fit":
            self._begin("Validating", sum(trainer.num_val_batches), "batches")

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count the batches."""
        if trainer.state.fn != "fit":
            self._count()
        elif self._steps is not None:
            self._steps.note = f"validating: batch {batch_idx + 1} of {sum(trainer.num_val_batches)}"
            self._steps.advance(0)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin."""
        self._begin("Decoding", sum(trainer.num_test_batches), "batches")

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin."""
        self._begin("Decoding", sum(trainer.num_predict_batches), "batches")

    def _note_time(self, *_: Any) -> None:
        self._batch_began = time.monotonic()

    def _count(self, *_: Any) -> None:
        """Count a batch; one that was restored does not make the others look faster."""
        if self._steps is not None:
            fresh = time.monotonic() - self._batch_began >= DONE_BEFORE_S
            (self._steps.advance if fresh else self._steps.skip)(1)

    on_validation_batch_start = on_test_batch_start = on_predict_batch_start = _note_time
    on_test_batch_end = on_predict_batch_end = _count
    on_train_end = on_test_end = on_predict_end = on_exception = _end

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End, unless training goes on."""
        if trainer.state.fn != "fit":
            self._end()
