"""Logits that are not finite: a text made of them is nonsense that looks like a text."""

import torch
from torch import Tensor
from transformers import LogitsProcessor

from hsdlab.errors import RunError


class NotFiniteLogitsError(RunError):
    """The logits of a token are not finite.

    Attributes:
        rows: Of the batch that was decoded, in order.
    """

    def __init__(self, strategy: object, step: int, rows: tuple[int, ...]) -> None:
        where = f"decode step {step}" if step else "the prompt pass"
        super().__init__(
            f"{strategy!r}: the logits are not finite in {where}, row {', '.join(map(str, rows))} of the batch. The "
            "model's dtype may be too narrow for it (--model.dtype=float32 or bfloat16), or it cannot do without the "
            "layers that are skipped."
        )
        self.rows = rows


class FiniteLogits(LogitsProcessor):
    """Looks at the logits of each step and changes nothing; what it found is asked for once, after the decode.

    Each step costs one reduction over the vocabulary on the device, and no synchronisation with it.
    """

    def __init__(self) -> None:
        self._bad: list[Tensor] = []  # BoolTensor [rows] of each step

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Note the rows whose largest logit is no number or infinite; some tokens may be ruled out by minus infinity.

        Args:
            input_ids: [rows, length].
            scores: [rows, vocabulary].
        """
        self._bad.append(~torch.isfinite(scores.amax(dim=-1)))
        return scores

    def check(self, strategy: object, sources: int, real_tokens: Tensor | None = None) -> None:
        """Refuse a decode in which some row had such logits.

        Args:
            strategy: Under which was decoded.
            sources: Rows of the batch; several beams or samples of one stand together.
            real_tokens: LongTensor [rows]: those beyond belong to no text any more. All count by default.

        Raises:
            NotFiniteLogitsError: With the first step and its rows.
        """
        if not self._bad:
            return
        bad = torch.stack(self._bad).cpu()  # (steps, rows)
        if real_tokens is not None:
            bad &= torch.arange(len(bad))[:, None] < real_tokens.cpu()
        if bad.any():
            step = int(bad.any(dim=1).nonzero()[0])
            each = bad.shape[1] // sources
            rows = sorted({row // each for row in bad[step].nonzero().flatten().tolist()})
            raise NotFiniteLogitsError(strategy, step, tuple(rows))
