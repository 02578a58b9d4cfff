"""PABEE, patience-based early exit (Zhou et al. 2020, arXiv 2006.04152)."""

import torch
from torch import Tensor

from hsdlab.decoding import LayerState
from hsdlab.errors import UserError
from hsdlab.strategies.probing import ExitRule, ProbingStrategy, nobody


class PABEE(ProbingStrategy):
    """Exit once the prediction has stayed the same for some layers in a row.

    A count starts at 0 in each step, rises by one where a probed layer predicts the token of the probed layer before
    it, and falls back to 0 where it does not; a sequence exits when the count reaches ``patience``, that is after
    patience + 1 equal predictions.

    Differs from the paper: a language model's one head serves all layers (the paper has a trained classifier for each),
    and skipped layers take their keys and values from the state that exited.

    Args:
        patience: Equal predictions in a row, after the first, until a sequence exits; None never exits. The default is
            ours.
        probe_layers: k to probe after every k-th layer that runs, or the indices of the layers to probe after.
        shortlist: K: after its first probe in a step, a sequence's prediction is among the K tokens that were likeliest
            in that probe, and only their rows of the head are computed.
        exit_rule: Who exits together: ``per_row``, ``min``, ``mean``, ``source_min`` or ``source_mean``, as in CALM,
            with the count for a confidence.
    """

    def __init__(
        self,
        patience: int | None = 6,
        probe_layers: int | list[int] = 1,
        shortlist: int | None = None,
        exit_rule: ExitRule = "per_row",
    ) -> None:
        if patience is not None and (not isinstance(patience, int) or patience < 1):
            raise UserError(f"PABEE: patience={patience}; expected 1 or more, or None to never exit.")
        super().__init__(probe_layers, shortlist, exit_rule)
        self.patience = patience

    def should_exit(self, state: LayerState) -> Tensor:
        """Sequences whose prediction has not changed for ``patience`` probes."""
        if self.patience is None or not self.probes(state):
            return nobody(state)
        logits, tokens = self.probed_logits(state)
        prediction = logits.argmax(dim=-1, keepdim=True)  # (rows, 1)
        if tokens is not None:
            prediction = tokens.gather(1, prediction)
        before, count = state.recall("prediction"), state.recall("count")
        state.keep("prediction", prediction)
        if before is None or count is None:
            state.keep("count", torch.zeros(len(prediction), device=prediction.device))
            return nobody(state)
        count = torch.where((prediction == before).squeeze(1), count + 1, 0)
        state.keep("count", count)
        return self.exits(state, count, self.patience)

    def never_skip(self) -> "PABEE":
        """No patience at all: it never exits."""
        return self.changed(patience=None)
