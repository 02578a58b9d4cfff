"""SkipStrategy: the contract of every strategy, and all of its Lightning hooks.

A strategy is a Lightning Callback. In ``callbacks=[...]`` of a Trainer it decodes every ``self.model.generate`` call of
the LightningModule with skipped layers, in validation, test and predict; teacher-forced losses stay at full depth.
Outside Lightning, ``with strategy.applied_to(model):`` does the same.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Self

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from hsdlab.costs import Cost
from hsdlab.decoding import AppliedRun, DecodeOutput, StepState, applied
from hsdlab.decoding.cost import decode_cost
from hsdlab.decoding.families import DecoderParts
from hsdlab.errors import UserError
from hsdlab.metrics.efficiency import Efficiency
from hsdlab.strategies.arguments import init_arguments


class SkipStrategy(Callback, ABC):
    """Decides which layers run in each decode step. Subclass it, or one of its two easier forms.

    The three rungs, each one method:

    - :class:`ScheduledStrategy`, ``layers_at``: the same layers for all sequences of a batch, known before the step.
    - :class:`SkipStrategy`, ``plan``: layers for each sequence, before the step.
    - :class:`ConfidenceStrategy`, ``should_exit``: asked after each executed layer.

    A strategy keeps no state from one decode to the next, so one object serves any number of batches. Its parameters
    are attributes named as in ``__init__``.
    """

    rows_depend: str | None = None
    """Why a sequence may decode otherwise in a batch than alone; None where it does not."""

    is_oracle: bool = False
    """Whether it looks at layers that it then claims not to have run: an upper bound, not a method."""

    @abstractmethod
    def plan(self, state: StepState) -> Tensor:
        """Choose the layers of a decode step for each sequence of the batch.

        Args:
            state: The step, rows, num_layers and max_steps.

        Returns:
            BoolTensor [rows, layers]: which sequence runs which layer, at least one each.
        """

    def check_model(self, parts: DecoderParts) -> None:
        """Refuse a model that the strategy does not fit; asked before anything is decoded. Call ``super()``'s too.

        Raises:
            UserError: If it does not fit; here, if the class loses arguments (:meth:`parameters`).
        """
        self.parameters()

    def scheduled_layers(self, num_layers: int, max_steps: int) -> Sequence[Sequence[int]] | None:
        """The layers of steps 0 … max_steps - 2 if they are known beforehand, else None (then ``plan`` is asked)."""
        return None

    def never_skip(self) -> Self | None:
        """The setting of the same class that never skips a layer, or None where there is none."""
        return None

    @contextmanager
    def applied_to(self, model: nn.Module, max_new_tokens: int | None = None) -> Iterator[AppliedRun]:
        """Decode every ``model.generate`` call inside the block under this strategy; restores the model on leaving.

        Args:
            model: A decoder-only transformers model.
            max_new_tokens: Default of ``model.generate`` inside the block; T of the schedules where a call gives none.

        Yields:
            The run: ``run.trace`` is the trace of the last ``generate`` call.

        Raises:
            UserError: If the strategy does not fit the model, or another one is already applied to it.
        """
        with applied(model, self, max_new_tokens=max_new_tokens) as run:
            yield run

    def parameters(self) -> dict[str, Any]:
        """The arguments of ``__init__`` by name, as they are now: those of base classes too that ``**kwargs`` pass on.

        Raises:
            UserError: If an argument is not an attribute of its name; configs and names would silently lack it.
        """
        names = init_arguments(type(self))
        for name in names:
            if not hasattr(self, name):
                raise UserError(
                    f"{type(self).__name__}.__init__ takes {name!r}, but the object has no attribute of that name; "
                    f"expected self.{name} = {name}, so that configs and names of the strategy hold it."
                )
        return {name: getattr(self, name) for name in names}

    def config(self) -> dict[str, Any]:
        """The strategy as a config names it, ready for YAML and JSON: ``class_path`` and ``init_args``."""
        arguments = {
            name: value.config() if isinstance(value, SkipStrategy) else value
            for name, value in self.parameters().items()
        }
        return {"class_path": f"{type(self).__module__}.{type(self).__qualname__}", "init_args": arguments}

    def shown_parameters(self) -> dict[str, Any]:
        """The parameters that tell this setting from others, in its name: all but text and None at their default."""
        defaults = init_arguments(type(self))
        return {
            name: value
            for name, value in self.parameters().items()
            if value != defaults[name] or not (value is None or isinstance(value, str))
        }

    def __repr__(self) -> str:
        named = ", ".join(f"{name}={value!r}" for name, value in self.shown_parameters().items())
        return f"{type(self).__name__}({named})"

    # Lightning -----------------------------------------------------------------------------------------------

    _stack: ExitStack | None = None
    _efficiency: Efficiency | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Parameters only: what is installed in this process stays here."""
        return {name: value for name, value in vars(self).items() if name not in ("_stack", "_efficiency")}

    @property
    def efficiency(self) -> dict[str, float]:
        """Depth and speed of the last validation, test or predict run (:class:`Efficiency`)."""
        if self._efficiency is None:
            raise RuntimeError(f"{type(self).__name__} has not decoded anything in a Trainer yet.")
        return {name: float(value) for name, value in self._efficiency.compute().items()}

    def add_cost(self, cost: Cost) -> None:
        """Count what a decode of an earlier run cost as if done in this."""
        if self._efficiency is not None:
            self._efficiency.update(cost)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a second strategy."""
        names = [type(c).__name__ for c in trainer.callbacks if isinstance(c, SkipStrategy)]
        if len(names) > 1:
            raise UserError(
                f"Expected one skip strategy in a run, got {len(names)}: {', '.join(names)}. Give one with --skip (not "
                "in trainer.callbacks too), or compare several with `compare`."
            )

    def _install(self, trainer: Trainer, pl_module: LightningModule) -> None:
        model = getattr(pl_module, "model", None)
        if not isinstance(model, nn.Module):
            raise UserError(
                f"{type(self).__name__} acts on the LightningModule's attribute 'model', which "
                f"{type(pl_module).__name__} does not have; name its transformers model so."
            )
        efficiency = Efficiency().to(pl_module.device)

        def record(output: DecodeOutput) -> None:
            efficiency.update(decode_cost(model, output))

        self._remove()
        self._efficiency = efficiency
        self._stack = ExitStack()
        self._stack.enter_context(applied(model, self, on_decode=record))

    def _remove(self, *args: Any, **kwargs: Any) -> None:
        stack, self._stack = self._stack, None
        if stack is not None:
            stack.close()

    def _log(self, stage: str, trainer: Trainer) -> None:
        decoded = self._efficiency is not None and self._efficiency.update_called
        if self._efficiency is None or not trainer.strategy.reduce_boolean_decision(decoded, all=False):
            return  # the module did not decode, in any process
        with torch.no_grad():
            values = self._efficiency.compute()
        self.log_dict({f"{stage}/{name}": value.float() for name, value in values.items()}, sync_dist=True)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log depth and speed."""
        self._log("val", trainer)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log depth and speed."""
        self._log("test", trainer)

    on_validation_start = on_test_start = on_predict_start = _install
    on_validation_end = on_test_end = on_predict_end = _remove
    on_exception = teardown = _remove
