"""CALM, Confident Adaptive Language Modeling (Schuster et al. 2022, arXiv 2207.07061)."""

from typing import Any, Literal

from torch import Tensor

from hsdlab.decoding import LayerState
from hsdlab.decoding.exit_classifier import ExitClassifier
from hsdlab.decoding.families import DecoderParts
from hsdlab.errors import UserError
from hsdlab.strategies.confidence import depth_threshold, saturation, softmax_response, time_threshold
from hsdlab.strategies.probing import ExitRule, ProbingStrategy, check_choice, check_not_negative, nobody

_MEASURES = ("softmax", "saturation", "classifier")
_SCHEDULES = ("constant", "time", "depth")
_FORMS = ("paper", "t5x")
_USED_BY = {
    "constant": ("threshold",),
    "time": ("threshold", "schedule", "temperature", "form"),
    "depth": ("schedule", "slope"),
}


class CALM(ProbingStrategy):
    """Exit at the first layer whose confidence reaches the threshold.

    There are three confidence measures (section 3.5). ``softmax`` is the top-1 minus the top-2 probability of an
    intermediate prediction. ``saturation`` is the cosine of the layer's output and that of the executed layer before.
    ``classifier`` is a trained linear layer. After an exit, the final norm and the head give the token. Later tokens
    that run the skipped layers get its keys and values from the hidden state at the exit (state propagation,
    section 3.2).

    A threshold of 1 or more means full depth, for every measure, even if a confidence is exactly 1.0. This is decided
    before any decay, since the decayed form of 1 would fall below it.

    Differs from the paper: decoder-only models too; batches and beams, in which each sequence exits by itself unless
    ``exit_rule`` says otherwise (the paper decodes single sequences). ``probe_layers``, ``shortlist``,
    ``check_vocabulary`` and ``gate`` make the softmax response cheaper and are not the paper's (docs/calm.md). By
    default each confidence check applies the whole head, which costs several layers on a small model. Fewer layers may
    then take longer.

    Args:
        threshold: λ for the schedules ``constant`` and ``time``, 0 or more; from 1 on, full depth.
        measure: ``softmax``, ``saturation`` or ``classifier``.
        schedule: ``constant``; ``time``, falling over the new tokens (:func:`time_threshold`, equation 5); ``depth``,
            falling over the layers (:func:`depth_threshold`, as in HSD's paper).
        temperature: τ of ``time``, 0 or more; 4 in the paper.
        form: Form of ``time``: ``paper``, or ``t5x`` as the authors' public code has it.
        slope: λ of ``depth``, 0 or more: 0.02 and 0.005 in HSD's paper; 0 never exits.
        classifier: File of the measure ``classifier`` (:class:`~hsdlab.decoding.exit_classifier.ExitClassifier`); None
            with the other measures.
        probe_layers: Where the confidence is checked: k for after every k-th layer that runs, or a list of layer
            indices. None for the layers at which the model was trained to exit, or every layer.
        shortlist: K, for ``softmax``. The first check of a sequence in a step applies the head; later ones compute only
            the logits of the K most likely tokens of the first. None always applies the head.
        gate: For ``softmax``, the saturation from which the head is applied. None always applies it.
        exit_rule: Who exits together: ``per_row``; ``min`` or ``mean``, all sequences of the batch at the first layer
            where their smallest or mean confidence reaches the threshold; ``source_min`` or ``source_mean``, the same
            for the beams of one prompt.
        late_exit: Read the answer of a check after the next executed layer, so that the host does not wait for the
            device. A sequence then exits one executed layer after the check that decided it.
        check_vocabulary: For ``softmax``, the tokens for which the head of a check is computed: a file that ``hsdlab
            count-tokens`` wrote, or a number of tokens with the lowest ids. None: all tokens.

    Raises:
        UserError: An argument is out of its range, or two of them exclude each other.
    """

    def __init__(
        self,
        threshold: float = 0.9,
        measure: Literal["softmax", "saturation", "classifier"] = "softmax",
        schedule: Literal["constant", "time", "depth"] = "constant",
        temperature: float = 4.0,
        form: Literal["paper", "t5x"] = "paper",
        slope: float = 0.02,
        classifier: str | None = None,
        probe_layers: int | list[int] | None = None,
        shortlist: int | None = None,
        gate: float | None = None,
        exit_rule: ExitRule = "per_row",
        late_exit: bool = False,
        check_vocabulary: int | str | None = None,
    ) -> None:
        check_choice("CALM", "measure", measure, _MEASURES)
        check_choice("CALM", "schedule", schedule, _SCHEDULES)
        check_choice("CALM", "form", form, _FORMS)
        check_not_negative("CALM", threshold=threshold, temperature=temperature, slope=slope)
        super().__init__(probe_layers, shortlist, exit_rule, gate, late_exit, check_vocabulary)
        if (measure == "classifier") != (classifier is not None):
            raise UserError(
                f"CALM: measure={measure!r} and classifier={classifier!r}; expected a classifier's file with "
                "measure='classifier', and only then."
            )
        if measure != "softmax" and any(option is not None for option in (shortlist, gate, check_vocabulary)):
            raise UserError(
                f"CALM: measure={measure!r} does not use the head; expected shortlist, gate and check_vocabulary only "
                "with 'softmax'."
            )
        self.threshold = threshold
        self.measure = measure
        self.schedule = schedule
        self.temperature = temperature
        self.form = form
        self.slope = slope
        self.classifier = classifier
        self._classifier: ExitClassifier | None = None

    def check_model(self, parts: DecoderParts) -> None:
        """Refuse layers, a head or a width that the model does not have; read the classifier."""
        super().check_model(parts)
        if self.classifier is not None:
            self._classifier = ExitClassifier.load(self.classifier, parts.hidden_size).to(parts.model.device)

    @property
    def reads_predictions(self) -> bool:
        """Whether the confidence is that of an intermediate prediction."""
        return self.measure == "softmax"

    def threshold_at(self, layer: int, step: int, max_steps: int) -> float:
        """Compute the threshold λ_i(t).

        Args:
            layer: i, the index of the layer.
            step: t.
            max_steps: T, the most new tokens.

        Returns:
            The confidence from which a sequence exits after the layer; from 1 on, none exits.
        """
        if self.schedule == "depth":
            return depth_threshold(self.slope, layer)
        if self.schedule == "constant" or self.threshold >= 1:
            return self.threshold
        return time_threshold(self.threshold, step, max_steps, self.temperature, self.form)

    def should_exit(self, state: LayerState) -> Tensor:
        """Find the sequences whose confidence reaches the threshold; a threshold of 1 or more measures nothing."""
        threshold = self.threshold_at(state.layer, state.step, state.max_steps)
        if threshold >= 1 or not self.probes(state):
            return nobody(state)
        if self.measure == "softmax":
            return self.exits_by_head(state, softmax_response, threshold)
        if self.measure == "saturation":
            return self.exits(state, saturation(state.output, state.previous_output), threshold)
        if self._classifier is None:
            raise RuntimeError("CALM reads its classifier when it meets a model: use generate() or applied_to().")
        return self.exits(state, state.probe.apply(self._classifier).sigmoid(), threshold)

    def shown_parameters(self) -> dict[str, Any]:
        """Leave out the parameters that the threshold's schedule does not use."""
        shown = super().shown_parameters()
        for_others = {name for names in _USED_BY.values() for name in names} - set(_USED_BY[self.schedule])
        return {name: value for name, value in shown.items() if name not in for_others}

    def never_skip(self) -> "CALM":
        """Set the threshold to 1."""
        return self.changed(threshold=1.0, schedule="constant")
