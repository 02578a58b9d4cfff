"""Which sequences run which layer in a decode step, from what a strategy answers.

A strategy answers in one of three ways, the three base classes of ``hsdlab.strategies``. A schedule is known before
decoding and is the same for all sequences. A plan says before each step which layers each sequence may run. An early
exit is decided after each executed layer, within the schedule or plan. An oracle answers after the step, when all
layers have run. The engine sees only the result: for each layer, the rows of the batch that run it, or its attention
and its MLP.

Longer than other files: the checks of a user's answers, each with its message, stand beside what they check.
"""

import itertools
import operator
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from hsdlab.decoding.device import Reading, RowsOnDevice
from hsdlab.decoding.families import DecoderParts
from hsdlab.decoding.states import HindsightState, LayerState, Probe, ProbeCost, StepMemory, StepState
from hsdlab.decoding.sub_layers import StepLayers, SubLayers, apart, step_mask
from hsdlab.decoding.token_head import TokenHeads
from hsdlab.errors import UserError

Rows = Tensor | None
"""Indices of sequences in the batch, LongTensor [n] on the CPU, ascending; None stands for all."""


class Strategy(Protocol):
    """What the engine calls on a strategy. ``hsdlab.strategies.SkipStrategy`` is the class to subclass.

    If a strategy also has ``should_exit(state: LayerState) -> BoolTensor [rows]``, the engine calls it after each
    executed layer, except after the last layer that may run. If the strategy's attribute ``late_exit`` is true, the
    answer is read after the next executed layer, and the sequence exits there.

    An oracle has ``exit_layers(state: HindsightState) -> LongTensor [rows]``. The engine then runs all layers, and the
    oracle says after which one each sequence exited. The oracle's ``keys_and_values`` ("law" or "full") says whether
    the keys and values of the layers above are computed from the hidden state at the exit ("law").
    """

    def check_model(self, parts: DecoderParts) -> None:
        """Refuse a model that the strategy does not fit. Called before anything is decoded.

        Args:
            parts: The model's layers, head and sizes.

        Raises:
            ValueError: The strategy does not fit; a ``UserError`` is one.
        """

    def scheduled_layers(self, num_layers: int, max_steps: int) -> Sequence[StepLayers] | None:
        """Give the layer schedule of a decode.

        Args:
            num_layers: L.
            max_steps: T, the most new tokens.

        Returns:
            The executed layers of steps 0 … T-2, or their parts, at least one for each step, the same for all
            sequences. None if they are not known before decoding; the engine then calls ``plan``.
        """

    def plan(self, state: StepState) -> Tensor:
        """Give the layers that each sequence may run in one step. Called where there is no schedule.

        Args:
            state: The step, and the sizes of batch and model.

        Returns:
            BoolTensor [rows, layers], with at least one layer in each row; or [rows, layers, 2] for attention and MLP.
        """


class Decisions:
    """The decisions of one strategy over one decode.

    Args:
        strategy: Who decides.
        num_layers: L.
        max_steps: T, the most new tokens.
        sources: Number of prompts. The sequences of one prompt (beams, or several samples) are consecutive in the
            batch. None means one sequence for each prompt.

    Attributes:
        executed: The layers of the current step: BoolTensor [rows or 1, layers] on the CPU; [rows or 1, layers, 2]
            where attention and MLP run apart.
        in_parts: Whether they run apart in the current step; before the first, whether a schedule has such steps.
        ended: BoolTensor [rows] on the device, true where the text has ended; None where that is not known.
        probed: The cost of deciding, added up over the decode.
        asking: Whether the strategy is being asked about exits at this moment.
        on_device: Copies indices of rows to the device.

    Raises:
        UserError: The strategy's schedule is not a list of T-1 non-empty sets of layers of this model.
    """

    def __init__(self, strategy: Strategy, num_layers: int, max_steps: int, sources: int | None = None) -> None:
        self.strategy = strategy
        self.name = type(strategy).__name__
        self.num_layers = num_layers
        self.max_steps = max_steps
        self._sources = sources
        self._should_exit = getattr(strategy, "should_exit", None)
        self._exit_layers = getattr(strategy, "exit_layers", None)
        self._late_exit = bool(getattr(strategy, "late_exit", False))
        schedule = strategy.scheduled_layers(num_layers, max_steps)
        self._schedule = None if schedule is None else self._checked_schedule(schedule)
        self.in_parts = any(isinstance(layers, SubLayers) for layers in self._schedule or ())
        # The last step that may run each layer's attention: after it nothing of the layer is needed any more.
        self._last_use = [max_steps] * num_layers if self._schedule is None else [-1] * num_layers
        self._attention = [
            frozenset(layers.attention) if isinstance(layers, SubLayers) else layers for layers in self._schedule or ()
        ]
        for step, layers in enumerate(self._attention):
            for layer in layers:
                self._last_use[layer] = step
        self.ended: Tensor | None = None
        self.probed = ProbeCost()
        self.asking = False
        self._settled: list[tuple[Tensor, Tensor]] = []  # rows that exited in this step, and what the head gave
        self.on_device = RowsOnDevice()
        self._heads = TokenHeads()

    @cached_property
    def same_for_all_rows(self) -> bool:
        """Whether the layers of all steps are known before decoding, so that no decision waits for the device."""
        return self._schedule is not None and not self.asks and not self.looks_back

    @property
    def asks(self) -> bool:
        """Whether the strategy decides about early exits (it has ``should_exit``)."""
        return self._should_exit is not None

    @property
    def looks_back(self) -> bool:
        """Whether the strategy is an oracle, which decides after each step (it has ``exit_layers``)."""
        return self._exit_layers is not None

    @cached_property
    def may_fill(self) -> bool:
        """Whether a layer may need late KV computations. It never does where the sets of layers only shrink."""
        if self._schedule is None or self.asks:
            return True
        return any(b - a for a, b in itertools.pairwise(self._attention))

    def rows_per_source(self, rows: int) -> int:
        """Count the rows that come from one prompt; they are consecutive.

        Args:
            rows: Number of rows in the batch.

        Returns:
            Beams, or sampled sequences, per prompt; 1 where the number of prompts is not known.
        """
        return 1 if self._sources is None else rows // self._sources

    def needed_after(self, layer: int, step: int) -> bool:
        """Say whether the keys and values of a layer are still needed.

        Args:
            layer: Index of the layer.
            step: t; -1 stands for the prefill.

        Returns:
            Whether some step after ``step`` may run the attention of ``layer``.
        """
        return self._last_use[layer] > step

    def always_runs(self, layer: int) -> bool:
        """Say whether a schedule runs a layer in every step.

        Args:
            layer: Index of the layer.

        Returns:
            Whether the attention of the layer runs in each step; False where the layers are not known beforehand.
        """
        return self._schedule is not None and all(layer in layers for layers in self._attention)

    @property
    def may_skip_prompt(self) -> bool:
        """Whether the strategy can have a prompt schedule (it has ``scheduled_prompt``)."""
        return hasattr(self.strategy, "scheduled_prompt")

    @property
    def schedules_prompt(self) -> bool:
        """Whether the strategy has a prompt schedule."""
        scheduled = getattr(self.strategy, "scheduled_prompt", None)
        return scheduled is not None and scheduled(1, self.num_layers) is not None

    def prompt_layers(self, valid: Tensor) -> Tensor | None:
        """Find the layers that each token of the prompts runs.

        Args:
            valid: BoolTensor [sources, prompt] on the CPU, false at padding.

        Returns:
            BoolTensor [sources, prompt, layers] on the CPU, true at padding; None where all tokens run all layers.

        Raises:
            UserError: The strategy's prompt schedule is not a list of non-empty sets of layers, one for each token.
        """
        scheduled = getattr(self.strategy, "scheduled_prompt", None)
        if scheduled is None:
            return None
        executed = torch.ones(*valid.shape, self.num_layers, dtype=torch.bool)
        lengths = valid.sum(dim=1).tolist()
        of_length = {length: scheduled(length, self.num_layers) for length in set(lengths)}
        if all(layers is None for layers in of_length.values()):
            return None
        masks = {length: self._prompt_mask(layers, length) for length, layers in of_length.items()}
        for row, length in enumerate(lengths):
            executed[row, valid[row]] = masks[length]
        return executed

    def _prompt_mask(self, scheduled: Sequence[Sequence[int]] | None, length: int) -> Tensor:
        """Return the layers of each token of a prompt, BoolTensor [length, layers]."""
        if scheduled is None:
            return torch.ones(length, self.num_layers, dtype=torch.bool)
        if not isinstance(scheduled, Sequence) or len(scheduled) != length:
            raise UserError(
                f"{self.name}.scheduled_prompt returned {described(scheduled)} for a prompt of {length} tokens; "
                "expected a list with the layers of each token, or None where all run all layers."
            )
        known: dict[Any, list[int]] = {}  # most tokens have the layers of others
        mask = torch.zeros(length, self.num_layers, dtype=torch.bool)
        for position, layers in enumerate(scheduled):
            key = tuple(layers) if isinstance(layers, Iterable) and not isinstance(layers, str) else layers
            if key not in known:
                known[key] = sorted(self._checked_layers(layers, f"token {position} of the prompt"))
            mask[position, known[key]] = True
        return mask

    def begin_step(self, step: int, rows: int) -> None:
        """Settle what is known before the step.

        Args:
            step: t, from 0 to T-2.
            rows: Number of sequences in the batch (with beams: sources × beams).

        Raises:
            UserError: The step is beyond T-2, or the strategy's plan has a wrong type or shape or leaves a sequence
                without a layer.
        """
        if step > self.max_steps - 2:
            raise UserError(
                f"{self.name} was set up for max_new_tokens={self.max_steps}, but a decode step {step} came; "
                "give the larger max_new_tokens."
            )
        self.step = step
        self.rows = rows
        if self.same_for_all_rows:
            self._now = self._attention[step]
            self.executed = self._scheduled(step)[None]
            return
        if self._schedule is None:
            plan = self.strategy.plan(StepState(step, rows, self.num_layers, self.max_steps))
            self._plan = self._checked_plan(plan, rows)
            self.in_parts = self._plan.dim() == 3
        else:
            scheduled = self._scheduled(step)
            self._plan = scheduled.expand(rows, *scheduled.shape)
        self.executed = torch.zeros(self._plan.shape, dtype=torch.bool)
        self._running = torch.ones(rows, dtype=torch.bool)
        self._layers_run = 0
        self._all_rows = torch.arange(rows)
        self._memory = StepMemory(rows, self.on_device)
        self._answer: tuple[Tensor, Reading] | None = None
        self._settled = []
        may_run = self._plan.any(dim=2) if self.in_parts else self._plan  # (rows, layers)
        self._for_all, self._for_some = may_run.all(dim=0).tolist(), may_run.any(dim=0).tolist()
        self._all_running = True
        last = may_run.any(dim=0).nonzero().squeeze(1)[-2 if self._late_exit else -1 :]
        # An exit after the last layer would skip nothing. With late_exit, so would one decided after the last but one.
        self._asked_below = int(last[0])

    def _scheduled(self, step: int) -> Tensor:
        """Return the schedule's layers of a step, BoolTensor [layers], or [layers, 2] if any step has parts."""
        layers = self._schedule[step] if self._schedule is not None else ()
        mask = step_mask(layers, self.num_layers)
        return apart(mask, dims=1) if self.in_parts else mask

    def rows_at(self, layer: int) -> Rows:
        """Decide who runs a layer, and note it in ``executed``.

        Args:
            layer: Index of the layer that comes next.

        Returns:
            None if all rows run it, else the indices of those that do; an empty tensor if none does.
        """
        if self.same_for_all_rows:
            return None if layer in self._now else _NO_ROWS
        if not self._for_some[layer]:
            return _NO_ROWS
        if self._all_running and self._for_all[layer]:
            self.executed[:, layer] = True
            return None
        run = self._running & self._plan[:, layer]
        self.executed[:, layer] = run
        return rows_of(run)

    def parts_at(self, layer: int) -> Tensor:
        """Decide who runs which part of a layer where attention and MLP run apart, and note it in ``executed``.

        Args:
            layer: Index of the layer that comes next.

        Returns:
            BoolTensor [rows, 2], or [1, 2] for all rows: attention and MLP.
        """
        if not self.same_for_all_rows:
            self.executed[:, layer] = self._running[:, None] & self._plan[:, layer]
        return self.executed[:, layer]

    def after(self, layer: int, rows: Rows, output: Tensor, arrived: Tensor, parts: DecoderParts) -> None:
        """Have the strategy decide who exits after a layer, unless no exit could skip a layer any more.

        An answer on the device is read once: now or, with ``late_exit``, after the next executed layer.

        Args:
            layer: Index of the layer that ran.
            rows: The rows that ran it; None for all.
            output: Its output for them, [rows, d].
            arrived: Its input for them, [rows, d]: the output of the last executed layer, if there was one.
            parts: Gives the final norm and the head, for intermediate predictions.

        Raises:
            UserError: ``should_exit`` did not return a BoolTensor [rows].
        """
        self._layers_run += 1
        if self._should_exit is None:
            return
        rows = self._all_rows if rows is None else rows
        if self._answer is not None:
            self._read_answer()
            stay = self._running[rows].nonzero().squeeze(1)
            if len(stay) < len(rows):
                rows, chosen = rows[stay], self.on_device.get(stay, output.device)
                output, arrived = output.index_select(0, chosen), arrived.index_select(0, chosen)
        if layer >= self._asked_below or len(rows) == 0:
            return
        state = self._layer_state(layer, rows, output, arrived, parts)
        self.asking = True
        try:
            exits = self._should_exit(state)
        finally:
            self.asking = False
        if not isinstance(exits, Tensor) or exits.dtype != torch.bool or exits.shape != rows.shape:
            raise UserError(
                f"{self.name}.should_exit returned {described(exits)}; expected a BoolTensor of shape "
                f"({len(rows)},): one answer for each sequence that has not exited."
            )
        self._answer = rows, Reading(exits)
        if not self._late_exit:
            self._read_answer()
            self._settle(rows, state.probe.head_output)

    def _settle(self, rows: Tensor, head_output: Tensor | None) -> None:
        """Keep what the head gave for the rows that have just exited."""
        if head_output is None:
            return
        left = (~self._running[rows]).nonzero().squeeze(1)
        if len(left) > 0:
            self._settled.append((rows[left], head_output[self.on_device.get(left, head_output.device)]))

    def take_settled(self, parts: DecoderParts) -> tuple[Tensor, Tensor] | None:
        """Give what the head gave for the rows that exited in this step, once; their checks then cost no head.

        Args:
            parts: Give the size of the head.

        Returns:
            The rows, LongTensor [n] on the device, and the head's output for them, [n, vocabulary]; None if there are
            none.
        """
        settled, self._settled = self._settled, []
        if not settled:
            return None
        rows, outputs = torch.cat([each for each, _ in settled]), torch.cat([each for _, each in settled])
        self.probed.reused(len(rows), parts.vocabulary_size * parts.head_weights[1], len(rows) == self.rows)
        return self.on_device.get(rows, outputs.device), outputs

    def _layer_state(
        self, layer: int, rows: Tensor, output: Tensor, arrived: Tensor, parts: DecoderParts
    ) -> LayerState:
        ended = self.ended
        if ended is not None and len(rows) < self.rows:
            ended = ended.index_select(0, self.on_device.get(rows, ended.device))
        return LayerState(
            layer=layer,
            layers_run=self._layers_run,
            step=self.step,
            num_layers=self.num_layers,
            max_steps=self.max_steps,
            rows=rows,
            rows_per_source=self.rows_per_source(self.rows),
            ended=ended,
            output=output,
            previous_output=None if self._layers_run == 1 else arrived,
            probe=Probe(parts, output, self.probed, layer, self._heads),
            memory=self._memory,
        )

    def _read_answer(self) -> None:
        if self._answer is not None:
            rows, exits = self._answer
            self._running[rows] = ~exits.values()
            self._all_running = bool(self._running.all())
            self._answer = None

    def look_back(self, outputs: Tensor, parts: DecoderParts) -> Tensor:
        """Have an oracle decide after which layer each sequence exited, and note it in ``executed``.

        Args:
            outputs: Output of each layer, [layers, rows, d].
            parts: Gives the final norm and the head, for intermediate predictions.

        Returns:
            The exit layers, LongTensor [rows] on the CPU, from 0 to L-1.

        Raises:
            RuntimeError: The strategy is not an oracle.
            UserError: ``exit_layers`` did not return a LongTensor [rows] with layers of this model.
        """
        if self._exit_layers is None:
            raise RuntimeError(f"{self.name} is not an oracle: it has no exit_layers.")
        state = HindsightState(self.step, self.rows, self.num_layers, self.max_steps, outputs, parts)
        exits = self._exit_layers(state)
        whole = isinstance(exits, Tensor) and exits.dtype == torch.long and tuple(exits.shape) == (self.rows,)
        if not whole or bool((exits < 0).any()) or bool((exits >= self.num_layers).any()):
            raise UserError(
                f"{self.name}.exit_layers returned {described(exits)}; expected a LongTensor of shape ({self.rows},) "
                f"with layers from 0 to {self.num_layers - 1}."
            )
        exits = exits.cpu()
        self.executed = torch.arange(self.num_layers) <= exits[:, None]  # (rows, layers)
        return exits

    @property
    def keeps_full_entries(self) -> bool:
        """Whether an oracle keeps the keys and values of full depth, against the decoding semantics."""
        return getattr(self.strategy, "keys_and_values", "law") == "full"

    def _checked_schedule(self, schedule: Sequence[StepLayers]) -> list[frozenset[int] | SubLayers]:
        if not isinstance(schedule, Sequence):
            raise UserError(
                f"{self.name}.scheduled_layers returned {described(schedule)}; expected a list with the layers of "
                "each step, or None where they are not known beforehand."
            )
        if len(schedule) != self.max_steps - 1:
            raise UserError(
                f"{self.name}.scheduled_layers gave {len(schedule)} steps; expected {self.max_steps - 1} "
                f"(max_new_tokens={self.max_steps} has one decode step fewer)."
            )
        return [self._checked_step(layers, f"step {step}") for step, layers in enumerate(schedule)]

    def _checked_step(self, layers: object, where: str) -> frozenset[int] | SubLayers:
        if not isinstance(layers, SubLayers):
            return self._checked_layers(layers, where)
        attention, mlp = (self._checked_indices(part, where) for part in (layers.attention, layers.mlp))
        if not attention | mlp:
            raise UserError(f"{self.name} runs no attention and no MLP in {where}; expected at least one.")
        return SubLayers(sorted(attention), sorted(mlp))

    def _checked_layers(self, layers: object, where: str) -> frozenset[int]:
        """Return the layers of a step or token as a set, since their order has no meaning."""
        indices = self._checked_indices(layers, where)
        if not indices:
            raise UserError(f"{self.name} runs no layer in {where}; expected at least one.")
        return indices

    def _checked_indices(self, layers: object, where: str) -> frozenset[int]:
        if not isinstance(layers, Iterable) or isinstance(layers, str):
            raise UserError(
                f"{self.name} gave {described(layers)} as the layers of {where}; expected their indices, such as "
                "(0, 2, 4)."
            )
        indices = [_index(layer) for layer in layers]
        wrong = [i for i in indices if not isinstance(i, int) or not 0 <= i < self.num_layers]
        if wrong:
            raise UserError(
                f"{self.name} runs layers {wrong} in {where}; this model has layers 0 to {self.num_layers - 1}."
            )
        return frozenset(indices)

    def _checked_plan(self, plan: Tensor, rows: int) -> Tensor:
        expected = (rows, self.num_layers)
        shapes = (expected, (*expected, 2))
        if not isinstance(plan, Tensor) or plan.dtype != torch.bool or tuple(plan.shape) not in shapes:
            raise UserError(
                f"{self.name}.plan returned {described(plan)} in step {self.step}; expected a BoolTensor of shape "
                f"{expected}: rows × layers, or {shapes[1]} for attention and MLP apart."
            )
        plan = plan.cpu()
        empty = (~plan.flatten(1).any(dim=1)).nonzero().squeeze(1).tolist()
        if empty:
            raise UserError(
                f"{self.name}.plan runs no layer for sequences {empty} in step {self.step}; expected one or more."
            )
        return plan


_NO_ROWS = torch.zeros(0, dtype=torch.long)


def rows_of(mask: Tensor) -> Rows:
    """List the rows of a mask.

    Args:
        mask: BoolTensor [rows] on the CPU; [1] stands for all rows.

    Returns:
        None if it is true everywhere, else the indices where it is.
    """
    return None if bool(mask.all()) else mask.nonzero().squeeze(1)


def _index(layer: Any) -> Any:
    """Return an index as an int, also one of NumPy or torch; what is not an index (a float, a bool) for the message."""
    if isinstance(layer, bool) or (isinstance(layer, Tensor) and (layer.dtype == torch.bool or layer.dim() > 0)):
        return str(layer)
    try:
        return operator.index(layer)
    except TypeError:
        return layer


def described(value: object) -> str:
    """Say what a value is, for messages.

    Args:
        value: What a strategy or a caller gave.

    Returns:
        dtype and shape of a tensor, the type of anything else; with an article, as in "a list".
    """
    if isinstance(value, Tensor):
        return f"a {value.dtype} tensor of shape {tuple(value.shape)}"
    return f"a {type(value).__name__}"
