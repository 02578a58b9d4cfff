"""SkipStrategy: the contract of every strategy, and all of its Lightning hooks.

A strategy is a Lightning Callback. In ``callbacks=[...]`` of a Trainer it decodes every ``self.model.generate`` call of
the LightningModule with skipped layers, in validation, test and predict. Teacher-forced losses stay at full depth.
Outside Lightning, ``with strategy.applied_to(model):`` does the same.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Self

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from hsdlab.costs import Cost
from hsdlab.decoding import AppliedRun, DecodeOutput, StepState, applied
from hsdlab.decoding.cost import decode_cost
from hsdlab.decoding.families import DecoderParts
from hsdlab.decoding.semantics import check_predictions
from hsdlab.decoding.sub_layers import StepLayers
from hsdlab.errors import UserError
from hsdlab.metrics.efficiency import Efficiency
from hsdlab.strategies.arguments import init_arguments


class SkipStrategy(Callback, ABC):
    """Decides which layers run in each decode step. Subclass it, or one of its two easier forms.

    The three base classes, each with one method to write:

    - :class:`ScheduledStrategy`, ``layers_at``: the same layers for all sequences of a batch, known before the step.
    - :class:`SkipStrategy`, ``plan``: layers for each sequence, before the step.
    - :class:`ConfidenceStrategy`, ``should_exit``: which sequences exit, after each executed layer.

    A strategy keeps no state from one decode to the next, so one object serves any number of batches. Its parameters
    are attributes named as in ``__init__``.
    """

    rows_depend: str | None = None
    """Why a sequence may decode otherwise in a batch than alone; None if it never does (law 7)."""

    is_oracle: bool = False
    """Whether it reads layers that it reports as not run: an upper bound, not a method."""

    @abstractmethod
    def plan(self, state: StepState) -> Tensor:
        """Choose the layers of a decode step for each sequence of the batch.

        Args:
            state: The step, and the sizes of batch and model.

        Returns:
            BoolTensor [rows, layers], true where the sequence may run the layer, with at least one layer in each row;
            or [rows, layers, 2] for attention and MLP apart.
        """

    def check_model(self, parts: DecoderParts) -> None:
        """Refuse a model that the strategy does not fit. Called before anything is decoded.

        Args:
            parts: The model's layers, head and sizes. A subclass that checks them also calls ``super().check_model``.

        Raises:
            UserError: The strategy does not fit. The base class refuses a strategy that does not keep its arguments
                (:meth:`parameters`), and, for one that reads intermediate predictions, a model of an unknown family
                whose logits are not those of its final norm and head.
        """
        self.parameters()
        if self.reads_predictions:
            check_predictions(parts)

    def check_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Refuse a tokenizer that the strategy does not fit. Called when a run of a Trainer begins.

        Args:
            tokenizer: That of the LightningModule. The base class takes any.

        Raises:
            UserError: The strategy does not fit.
        """

    @property
    def reads_predictions(self) -> bool:
        """Whether the strategy reads intermediate predictions; the base class assumes it of all that decide late."""
        return hasattr(self, "should_exit") or hasattr(self, "exit_layers")

    def scheduled_layers(self, num_layers: int, max_steps: int) -> Sequence[StepLayers] | None:
        """Give the layer schedule of a decode.

        Args:
            num_layers: L.
            max_steps: T, the most new tokens.

        Returns:
            The layers of steps 0 … T-2, the same for all sequences. None, the answer of the base class, if they are
            not known before decoding; the engine then calls ``plan`` in each step.
        """
        return None

    def never_skip(self) -> Self | None:
        """Make the setting of this class that runs all layers (law 2).

        Returns:
            A strategy of the same class. None, the answer of the base class, where no setting runs all layers.
        """
        return None

    def resolved(self, num_layers: int) -> "SkipStrategy":
        """Fill in the parameters that depend on the model, as tables and pictures show the setting.

        Args:
            num_layers: L.

        Returns:
            The same setting with numbers in place of "auto" and None; this object where there are none.
        """
        return self

    def _with(self, **parameters: Any) -> Self:
        """Copy the setting with other parameters; a subclass stays itself, with all that it has besides."""
        other = copy.copy(self)
        for name, value in parameters.items():
            setattr(other, name, value)
        return other

    @contextmanager
    def applied_to(self, model: nn.Module, max_new_tokens: int | None = None) -> Iterator[AppliedRun]:
        """Decode every ``model.generate`` call inside the block under this strategy; restores the model on leaving.

        Args:
            model: A transformers language model, or a peft model around one.
            max_new_tokens: T of the calls inside the block that give no length themselves, at least 1. None leaves
                them to the model's own default.

        Yields:
            The run; ``run.trace`` is the trace of the last ``generate`` call.

        Raises:
            UserError: The strategy does not fit the model, or another one is already applied to it.
        """
        with applied(model, self, max_new_tokens=max_new_tokens) as run:
            yield run

    def parameters(self) -> dict[str, Any]:
        """Read the current values of the arguments of ``__init__``.

        Returns:
            The value of each argument by name, also of those that ``**kwargs`` pass on to a base class.

        Raises:
            UserError: The object has no attribute with the name of an argument.
        """
        names = init_arguments(type(self))
        for name in names:
            if not hasattr(self, name):
                raise UserError(
                    f"{type(self).__name__}.__init__ takes {name!r}, but the object has no attribute of that name; "
                    f"expected self.{name} = {name}, so that configs and names of the strategy contain it."
                )
        return {name: getattr(self, name) for name in names}

    def config(self) -> dict[str, Any]:
        """Describe the strategy as a config does.

        Returns:
            ``class_path`` and ``init_args``, ready for YAML and JSON; a strategy among the arguments is such a
            dictionary itself.
        """
        arguments = {
            name: value.config() if isinstance(value, SkipStrategy) else value
            for name, value in self.parameters().items()
        }
        return {"class_path": f"{type(self).__module__}.{type(self).__qualname__}", "init_args": arguments}

    def shown_parameters(self) -> dict[str, Any]:
        """Choose the parameters that the name of this setting shows (``repr``).

        Returns:
            The value of each parameter by name, without text and None at their defaults.
        """
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
        """Return the parameters only, without what is installed in this process."""
        return {name: value for name, value in vars(self).items() if name not in ("_stack", "_efficiency")}

    @property
    def efficiency(self) -> dict[str, float]:
        """Depth, time and cost of the last validation, test or predict run (:class:`Efficiency`).

        Raises:
            RuntimeError: No Trainer has run with this strategy yet.
        """
        if self._efficiency is None:
            raise RuntimeError(f"{type(self).__name__} has not decoded anything in a Trainer yet.")
        return {name: float(value) for name, value in self._efficiency.compute().items()}

    def add_cost(self, cost: Cost) -> None:
        """Add the cost of a decode that an earlier run made to that of this run, which resumes it.

        Args:
            cost: Has the model's ``num_layers``. Outside of a run of a Trainer it is ignored.
        """
        if self._efficiency is not None:
            self._efficiency.update(cost)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a second strategy in one run, and a tokenizer that the strategy does not fit."""
        names = [type(c).__name__ for c in trainer.callbacks if isinstance(c, SkipStrategy)]
        if len(names) > 1:
            raise UserError(
                f"Expected one skip strategy in a run, got {len(names)}: {', '.join(names)}. Give one with --skip (not "
                "in trainer.callbacks too), or compare several with `compare`."
            )
        tokenizer = getattr(pl_module, "tokenizer", None)
        if isinstance(tokenizer, PreTrainedTokenizerBase):
            self.check_tokenizer(tokenizer)

    def _install(self, trainer: Trainer, pl_module: LightningModule) -> None:
        model = getattr(pl_module, "model", None)
        if not isinstance(model, nn.Module):
            raise UserError(
                f"{type(self).__name__} acts on the LightningModule's attribute 'model', which "
                f"{type(pl_module).__name__} does not have; give its transformers model that name."
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
