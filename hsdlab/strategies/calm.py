"""CALM, Confident Adaptive Language Modeling (Schuster et al. 2022, arXiv 2207.07061)."""

from typing import Any, Literal

import torch
from torch import Tensor

from hsdlab.decoding import LayerState
from hsdlab.strategies.confidence import ConfidenceStrategy, depth_threshold, softmax_response, time_threshold

_MEASURES = ("softmax",)
_SCHEDULES = ("constant", "time", "depth")
_FORMS = ("paper", "t5x")


class CALM(ConfidenceStrategy):
    """Exit at the first layer whose confidence reaches the threshold.

    Confidence is the softmax response of the head applied to the layer's output (section 3.5). A row that exits goes
    through the final norm and the head; later tokens that run the skipped layers take its keys and values from the
    state it exited with (state propagation, section 3.2).

    A threshold of 1 or more means the full model: decided before any decay (the decayed form of 1 would fall below
    it), and also where a confidence is exactly 1.0.

    Differs from the paper: decoder-only models, and each row of a batch or beam exits by itself (the paper decodes
    single rows). Each probe applies the whole head: on a small model that costs several layers, so fewer layers may
    well take longer (README, "Honest limits").

    Args:
        threshold: λ for the schedules ``constant`` and ``time``.
        measure: ``softmax``.
        schedule: ``constant``; ``time``, falling over the new tokens (:func:`time_threshold`, equation 5); ``depth``,
            falling over the layers (:func:`depth_threshold`, as in HSD's paper).
        temperature: τ of ``time``.
        form: Form of ``time``: ``paper``, or ``t5x`` as the authors' public code has it.
        slope: λ of ``depth``: 0.02 and 0.005 in HSD's paper; 0 never exits.
    """

    def __init__(
        self,
        threshold: float = 0.9,
        measure: Literal["softmax"] = "softmax",
        schedule: Literal["constant", "time", "depth"] = "constant",
        temperature: float = 4.0,
        form: Literal["paper", "t5x"] = "paper",
        slope: float = 0.02,
    ) -> None:
        for name, value, known in (
            ("measure", measure, _MEASURES),
            ("schedule", schedule, _SCHEDULES),
            ("form", form, _FORMS),
        ):
            if value not in known:
                raise ValueError(f"CALM: {name}={value!r}; expected one of {', '.join(known)}.")
        for name, number in (("threshold", threshold), ("temperature", temperature), ("slope", slope)):
            if not number >= 0:
                raise ValueError(f"CALM: {name}={number!r}; expected 0 or more.")
        self.threshold = threshold
        self.measure = measure
        self.schedule = schedule
        self.temperature = temperature
        self.form = form
        self.slope = slope

    def threshold_at(self, layer: int, step: int, max_steps: int) -> float:
        """λ_i(t): the confidence from which a row exits after a layer; 1 or more stands for never."""
        if self.schedule == "depth":
            return depth_threshold(self.slope, layer)
        if self.schedule == "constant" or self.threshold >= 1:
            return self.threshold
        return time_threshold(self.threshold, step, max_steps, self.temperature, self.form)

    def should_exit(self, state: LayerState) -> Tensor:
        """Rows whose confidence reaches the threshold; the head is not applied where the threshold is 1 or more."""
        threshold = self.threshold_at(state.layer, state.step, state.max_steps)
        if threshold >= 1:
            return torch.zeros(len(state.output), dtype=torch.bool)
        return softmax_response(state.logits()) >= threshold

    def shown_parameters(self) -> dict[str, Any]:
        """The parameters that its schedule uses."""
        names = {
            "constant": ("threshold",),
            "time": ("threshold", "schedule", "temperature", "form"),
            "depth": ("schedule", "slope"),
        }
        return {name: getattr(self, name) for name in names[self.schedule]}

    def never_skip(self) -> "CALM":
        """A threshold of 1."""
        return CALM(
            threshold=1.0,
            measure=self.measure,
            schedule="constant",
            temperature=self.temperature,
            form=self.form,
            slope=self.slope,
        )
