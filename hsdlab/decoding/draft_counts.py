"""What verified decoding computes: drafts, verifications, and what was accepted of them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from hsdlab.decoding.sub_layers import apart
from hsdlab.decoding.token_head import TokenHead

_WHOLE_TEXT = 2**40  # tokens: more than any text has


class DraftCounts:
    """The ledger of verified decoding. A part of a layer counts by itself: attention, MLP.

    Args:
        windows: The sliding window of each of the L layers, tokens; None where there is none.
        prompt_length: Length of the (padded) prompt, tokens.
        rows: Sequences of the batch.

    Attributes:
        tokens: Tokens for which each part ran in draft steps and verifications, LongTensor [layers, 2].
        attended: Keys that these tokens attended to, summed, LongTensor [layers]; none outside of a window.
        keys_read: Keys that were read, LongTensor [layers]: those of a row once for all of its tokens in a pass.
        rows_run: Sequences of all passes for which attention ran, LongTensor [layers]. Each reads its source once.
        passes: Passes in which each part ran, LongTensor [layers, 2].
        computed: Tokens of all passes.
        head_tokens: Tokens to which the whole head was applied.
        forward_passes: Draft steps and verifications of the whole batch.
        head_passes: Those with the whole head.
        draft_head_weights: Weights that the heads of drafts multiplied with hidden states, summed over the tokens.
        draft_head_weights_read: Weights that were read for that.
        rounds: For each sequence, drafted and accepted tokens of each of its verifications.
    """

    def __init__(self, windows: Sequence[int | None], prompt_length: int, rows: int) -> None:
        num_layers = len(windows)
        self.tokens = torch.zeros(num_layers, 2, dtype=torch.long)
        self.attended = torch.zeros(num_layers, dtype=torch.long)
        self.keys_read = torch.zeros(num_layers, dtype=torch.long)
        self.rows_run = torch.zeros(num_layers, dtype=torch.long)
        self.passes = torch.zeros(num_layers, 2, dtype=torch.long)
        self.computed = 0
        self.head_tokens = 0
        self.forward_passes = 0
        self.head_passes = 0
        self.draft_head_weights = 0
        self.draft_head_weights_read = 0
        self.rounds: list[list[tuple[int, int]]] = [[] for _ in range(rows)]
        self._prompt_length = prompt_length
        self._windows = torch.tensor([_WHOLE_TEXT if window is None else window for window in windows])

    def __repr__(self) -> str:
        sums = self.sums()
        return (
            f"{type(self).__name__}(sequences={len(self.rounds)}, "
            f"{', '.join(f'{name}={value}' for name, value in sums.items())})"
        )

    def drafted(self, executed: Tensor, starts: Tensor, drafting: Tensor, head: TokenHead | None) -> None:
        """Count a draft step.

        Args:
            executed: BoolTensor [rows, layers], or [rows, layers, 2].
            starts: New tokens of each row before the step that have keys and values, LongTensor [rows].
            drafting: The rows that draft, BoolTensor [rows].
            head: The head of the draft; None for the model's own.
        """
        self._ran(executed[:, None], starts[:, None])
        count = int(drafting.sum())
        self.computed += count
        if head is None:
            self.head_tokens += count
            self.head_passes += 1
        else:
            self.draft_head_weights += count * head.weights
            self.draft_head_weights_read += head.weights

    def verified(self, executed: Tensor, starts: Tensor, valid: Tensor) -> None:
        """Count a verification.

        Args:
            executed: BoolTensor [rows, tokens, layers], false at padding.
            starts: New tokens of each row before it, LongTensor [rows].
            valid: BoolTensor [rows, tokens], false at padding.
        """
        self._ran(executed, starts[:, None] + torch.arange(valid.shape[1]))
        self.computed += int(valid.sum())
        self.head_tokens += int(valid.sum())
        self.head_passes += 1

    def _ran(self, executed: Tensor, places: Tensor) -> None:
        """Count a pass: executed [rows, tokens, layers] or [rows, tokens, layers, 2], places [rows, tokens]."""
        executed = apart(executed, dims=3)
        self.tokens += executed.sum(dim=(0, 1))
        ran = executed[..., 0]  # (rows, tokens, layers)
        ends = (self._prompt_length + places + 1)[:, :, None]  # of the keys of a token
        self.attended += (ran * ends.minimum(self._windows)).sum(dim=(0, 1))
        begins = (ends - self._windows).masked_fill(~ran, _WHOLE_TEXT).amin(dim=1).clamp(min=0)
        self.keys_read += ((ran * ends).amax(dim=1) - begins).clamp(min=0).sum(dim=0)
        self.rows_run += ran.any(dim=1).sum(dim=0)
        self.passes += executed.any(dim=0).any(dim=0)
        self.forward_passes += 1

    def sums(self) -> dict[str, int]:
        """Add up over the batch.

        Returns:
            Fields of :class:`~hsdlab.costs.Cost` by name.
        """
        rounds = [each for row in self.rounds for each in row]
        return {
            "verifications": len(rounds),
            "draft_tokens": sum(drafted for drafted, _ in rounds),
            "accepted_drafts": sum(accepted for _, accepted in rounds),
        }

    def accepted(self, rows: Tensor, drafted: Tensor, accepted: Tensor) -> None:
        """Note what a verification accepted.

        Args:
            rows: The sequences, LongTensor [rows].
            drafted: Drafts of each, LongTensor [rows].
            accepted: Those that are in the text, likewise.
        """
        for row, count, kept in zip(rows.tolist(), drafted.tolist(), accepted.tolist(), strict=True):
            self.rounds[row].append((count, kept))
