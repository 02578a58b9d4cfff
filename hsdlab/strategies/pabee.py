"""PABEE, patience-based early exit (Zhou et al. 2020, arXiv 2006.04152)."""

from typing import Literal

import torch
from torch import Tensor

from hsdlab.decoding import LayerState
from hsdlab.decoding.families import DecoderParts
from hsdlab.errors import UserError
from hsdlab.strategies.probing import ExitRule, ProbingStrategy, nobody

_PATIENCE = 6


class PABEE(ProbingStrategy):
    """Exit once the intermediate prediction has stayed the same for some layers in a row.

    A count starts at 0 in each step. It rises by one where a layer predicts the same token as the layer checked before,
    and falls back to 0 where it does not. A sequence exits when the count reaches ``patience``, that is after
    patience + 1 equal predictions.

    Differs from the paper: the one head of a language model serves all layers (the paper has a trained classifier for
    each). Skipped layers get their keys and values from the hidden state at the exit.

    Args:
        patience: Equal predictions in a row, after the first, until a sequence exits, 1 or more; None never exits.
            "auto", the default and ours, is 6, or less where the model has fewer checks in a step. A number that a
            model's checks cannot reach is refused when the strategy meets the model.
        probe_layers: Where the prediction is checked: k for after every k-th layer that runs, or a list of layer
            indices. None for the layers at which the model was trained to exit, or every layer.
        shortlist: K. The first check of a sequence in a step applies the head; later ones choose among the K most
            likely tokens of the first. None always applies the head.
        exit_rule: Who exits together: ``per_row``, ``min``, ``mean``, ``source_min`` or ``source_mean``, as in CALM,
            with the count as the confidence.
        late_exit: Read the answer of a check after the next executed layer, so that the host does not wait for the
            device. A sequence then exits one executed layer after the check that decided it.
        check_vocabulary: The tokens among which a check predicts: a file that ``hsdlab count-tokens`` wrote, or a
            number of tokens with the lowest ids. None: all tokens.

    Raises:
        UserError: An argument is out of its range.
    """

    def __init__(
        self,
        patience: int | Literal["auto"] | None = "auto",
        probe_layers: int | list[int] | None = None,
        shortlist: int | None = None,
        exit_rule: ExitRule = "per_row",
        late_exit: bool = False,
        check_vocabulary: int | str | None = None,
    ) -> None:
        if patience not in ("auto", None) and not (isinstance(patience, int) and patience >= 1):
            raise UserError(f"PABEE: patience={patience!r}; expected 1 or more, 'auto', or None to never exit.")
        super().__init__(probe_layers, shortlist, exit_rule, late_exit=late_exit, check_vocabulary=check_vocabulary)
        self.patience = patience

    def check_model(self, parts: DecoderParts) -> None:
        """Refuse a patience that this model has too few layers to reach."""
        super().check_model(parts)
        most = self.most_probes(parts.num_layers) - 1
        if self.patience is not None and self.patience_on(parts.num_layers) > most:
            instead = f"expected {most} at most, 'auto', or None to never exit" if most else "give more probe_layers"
            raise UserError(
                f"PABEE: patience={self.patience!r} never ends on this model: of its {parts.num_layers} layers it "
                f"probes after {most + 1}, and the patience counts from the second of them; {instead}."
            )

    def patience_on(self, num_layers: int) -> int:
        """Resolve ``patience`` for a model.

        Args:
            num_layers: L.

        Returns:
            The count from which a sequence exits, at least 1. For None, what "auto" gives; ``should_exit`` does not use
            it then.

        Example:
            >>> PABEE().patience_on(num_layers=30), PABEE().patience_on(num_layers=4)
            (6, 2)
        """
        if isinstance(self.patience, int):
            return self.patience
        return max(1, min(_PATIENCE, self.most_probes(num_layers) - 1))

    def fewest_probes(self, num_layers: int) -> int:
        """Count the checks of the patience, and the one before them."""
        return 1 if self.patience is None else self.patience_on(num_layers) + 1

    def should_exit(self, state: LayerState) -> Tensor:
        """Find the sequences whose prediction has not changed for ``patience`` checks."""
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
        patience = self.patience_on(state.num_layers)
        if self.probes_so_far(state) <= patience:  # no count can have reached it
            return nobody(state)
        return self.exits(state, count, patience)

    def never_skip(self) -> "PABEE":
        """Set the patience to None, which never exits."""
        return self.changed(patience=None)
