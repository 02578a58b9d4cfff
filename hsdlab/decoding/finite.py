"""Logits that are not finite: the tokens chosen from them are nonsense, but look like a text."""

import torch
from torch import Tensor
from transformers import LogitsProcessor

from hsdlab.errors import RunError


class NotFiniteLogitsError(RunError):
    """The logits of a token are not finite.

    Args:
        strategy: The strategy that was applied; the message shows it.
        step: The decode step whose logits they are; 0 stands for the prefill.
        rows: Indices of the sequences in the batch, ascending.

    Attributes:
        rows: As given.
    """

    def __init__(self, strategy: object, step: int, rows: tuple[int, ...]) -> None:
        where = f"decode step {step}" if step else "the prefill"
        super().__init__(
            f"{strategy!r}: the logits are not finite in {where}, sequence {', '.join(map(str, rows))} of the batch. "
            "The model's dtype may be too narrow for it (--model.dtype=float32 or bfloat16), or it cannot do without "
            "the layers that are skipped."
        )
        self.rows = rows


class FiniteLogits(LogitsProcessor):
    """Notes whether the logits of each step are finite, and changes nothing. ``check`` reads the notes after decoding.

    Each step costs one reduction over the vocabulary on the device, and no synchronisation with it.
    """

    def __init__(self) -> None:
        self._bad: list[Tensor] = []  # BoolTensor [rows] of each step

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Note the sequences whose largest logit is NaN or infinite. Minus infinity may rule out single tokens.

        Args:
            input_ids: The text so far, [rows, length]; not used.
            scores: The logits of the next token, [rows, vocabulary].

        Returns:
            ``scores``.
        """
        self._bad.append(~torch.isfinite(scores.amax(dim=-1)))
        return scores

    def check(self, strategy: object, sources: int, real_tokens: Tensor | None = None) -> None:
        """Refuse a decode in which some sequence had such logits.

        Args:
            strategy: The strategy that was applied; the message shows it.
            sources: Number of prompts; the beams or samples of one prompt are consecutive rows.
            real_tokens: New tokens of each row, LongTensor [rows]. Steps beyond them only pad, and do not count. None
                counts all steps of all rows.

        Raises:
            NotFiniteLogitsError: It names the first such step and, for that step, the prompts.
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
