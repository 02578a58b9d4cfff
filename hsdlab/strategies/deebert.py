"""DeeBERT's entropy as a measure of confidence (Xin et al. 2020, arXiv 2004.12993)."""

from torch import Tensor

from hsdlab.decoding import LayerState
from hsdlab.strategies.confidence import certainty
from hsdlab.strategies.probing import ExitRule, ProbingStrategy, check_not_negative, nobody


class DeeBERT(ProbingStrategy):
    """Exit at the first layer whose prediction has little entropy.

    The paper exits where the entropy H of a layer's prediction is below a threshold S. Here more is more confident, and
    the scale does not depend on the vocabulary: exit where 1 - H / ln V ≥ ``threshold``; S is (1 - threshold) · ln V.

    Differs from the paper: a language model's one head serves all layers (the paper classifies texts with a trained
    classifier for each layer), so an exit may come at any layer of any token, and skipped layers take their keys and
    values from the state that exited.

    Args:
        threshold: From 0, which exits at the first probe, to 1, the full model. The default is ours.
        probe_layers: k to probe after every k-th layer that runs, or the indices of the layers to probe after.
        shortlist: K: after its first probe in a step, a sequence's entropy is over the K tokens that were likeliest in
            that probe, relative to ln K, and only their rows of the head are computed.
        gate: The hidden-state saturation from which the head is applied at all.
        exit_rule: Who exits together: ``per_row``, ``min``, ``mean``, ``source_min`` or ``source_mean``, as in CALM.
    """

    def __init__(
        self,
        threshold: float = 0.9,
        probe_layers: int | list[int] = 1,
        shortlist: int | None = None,
        gate: float | None = None,
        exit_rule: ExitRule = "per_row",
    ) -> None:
        check_not_negative("DeeBERT", threshold=threshold)
        super().__init__(probe_layers, shortlist, exit_rule, gate)
        self.threshold = threshold

    def should_exit(self, state: LayerState) -> Tensor:
        """Sequences whose certainty reaches the threshold; nothing is measured where the threshold is 1 or more."""
        if self.threshold >= 1 or not self.probes(state):
            return nobody(state)
        return self.exits(state, self.head_confidence(state, certainty), self.threshold)

    def never_skip(self) -> "DeeBERT":
        """A threshold of 1."""
        return self.changed(threshold=1.0)
