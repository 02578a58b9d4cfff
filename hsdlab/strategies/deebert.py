"""DeeBERT's entropy as a confidence measure (Xin et al. 2020, arXiv 2004.12993)."""

from torch import Tensor

from hsdlab.decoding import LayerState
from hsdlab.strategies.confidence import certainty
from hsdlab.strategies.probing import ExitRule, ProbingStrategy, check_not_negative, nobody


class DeeBERT(ProbingStrategy):
    """Exit at the first layer whose intermediate prediction has little entropy.

    The paper exits where the entropy H of a layer's prediction is below a threshold S. Here a larger number is more
    confident, and the scale does not depend on the vocabulary: exit where 1 - H / ln V ≥ ``threshold``. So S is
    (1 - threshold) · ln V.

    Differs from the paper: the one head of a language model serves all layers (the paper classifies texts with a
    trained classifier for each layer). A token may exit after any layer. Skipped layers get their keys and values from
    the hidden state at the exit.

    Args:
        threshold: From 0, which exits at the first confidence check, to 1, full depth. The default is ours.
        probe_layers: Where the confidence is checked: k for after every k-th layer that runs, or a list of layer
            indices. None for the layers at which the model was trained to exit, or every layer.
        shortlist: K. The first check of a sequence in a step applies the head; in later ones the entropy is over the K
            most likely tokens of the first, relative to ln K. None always applies the head.
        gate: The hidden-state saturation from which the head is applied. None always applies it.
        exit_rule: Who exits together: ``per_row``, ``min``, ``mean``, ``source_min`` or ``source_mean``, as in CALM.
        late_exit: Read the answer of a check after the next executed layer, so that the host does not wait for the
            device. A sequence then exits one executed layer after the check that decided it.
        check_vocabulary: The tokens for which the head of a check is computed, a file that ``hsdlab count-tokens``
            wrote or a number N of tokens with the lowest ids. The entropy is then relative to ln N. None: all tokens.

    Raises:
        UserError: An argument is out of its range, or ``shortlist`` and ``gate`` are both given.
    """

    def __init__(
        self,
        threshold: float = 0.9,
        probe_layers: int | list[int] | None = None,
        shortlist: int | None = None,
        gate: float | None = None,
        exit_rule: ExitRule = "per_row",
        late_exit: bool = False,
        check_vocabulary: int | str | None = None,
    ) -> None:
        check_not_negative("DeeBERT", threshold=threshold)
        super().__init__(probe_layers, shortlist, exit_rule, gate, late_exit, check_vocabulary)
        self.threshold = threshold

    def should_exit(self, state: LayerState) -> Tensor:
        """Find the sequences whose certainty reaches the threshold; a threshold of 1 or more measures nothing."""
        if self.threshold >= 1 or not self.probes(state):
            return nobody(state)
        return self.exits_by_head(state, certainty, self.threshold)

    def never_skip(self) -> "DeeBERT":
        """Set the threshold to 1."""
        return self.changed(threshold=1.0)
