"""How many tokens each row drafts before the next verification."""

import torch
from torch import Tensor

VERIFIED_TOKEN = 0.03
"""What each token more makes a verification dearer, in decode steps at full depth: a pass of SmolLM2-135M over five
tokens took 28.8 ms and a step 25.8 ms (float32, 2 cores, one sequence)."""

_PRIOR_ACCEPTED, _PRIOR_SEEN = 4.0, 5.0  # a row begins as if 4 of 5 drafts had been accepted


class DraftLength:
    """Chooses the number of drafts of each row.

    With a cost, it takes the number with the most expected new tokens per time: of k drafts, each accepted with the
    probability p that the row has shown so far, (1 - p^(k+1)) / (1 - p) new tokens are expected, for the time of
    1 + k × cost steps at full depth (Leviathan et al. 2023, arXiv 2211.17192, theorem 3.8).

    Args:
        most: The largest number.
        cost: Time of one draft and its share of the verification, in decode steps at full depth. None always drafts
            ``most``.
        stops_below: A row drafts no more after a token to which the draft gave a smaller probability.

    Attributes:
        stops_below: As given.
    """

    def __init__(self, most: int, cost: float | None = None, stops_below: float = 0.0) -> None:
        self.stops_below = stops_below
        self._most = most
        self._cost = cost
        self._seen: dict[int, tuple[float, float]] = {}  # of each row: accepted drafts, drafts that were looked at

    def of_rows(self, rows: Tensor) -> Tensor:
        """Choose for some rows.

        Args:
            rows: Their places in the batch, LongTensor [rows] on the CPU.

        Returns:
            LongTensor [rows], from 1 to ``most``.
        """
        if self._cost is None:
            return torch.full((len(rows),), self._most)
        counts = torch.arange(1, self._most + 1)  # (most)
        pairs = torch.tensor([self._seen.get(row, (0.0, 0.0)) for row in rows.tolist()])
        rate = ((pairs[:, 0] + _PRIOR_ACCEPTED) / (pairs[:, 1] + _PRIOR_SEEN))[:, None]  # (rows, 1), below 1
        expected = (1 - rate ** (counts + 1)) / (1 - rate)
        return counts[(expected / (1 + counts * self._cost)).argmax(dim=1)]

    def saw(self, rows: Tensor, drafted: Tensor, accepted: Tensor) -> None:
        """Note what a verification accepted.

        Args:
            rows: Places in the batch, LongTensor [rows] on the CPU.
            drafted: Drafts of each, likewise.
            accepted: Accepted drafts of each, likewise. The first rejected one was looked at too, those after it not.
        """
        for row, count, kept in zip(rows.tolist(), drafted.tolist(), accepted.tolist(), strict=True):
            before, looked_at = self._seen.get(row, (0.0, 0.0))
            self._seen[row] = before + kept, looked_at + min(kept + 1, count)

    def goes_on(self, probabilities: Tensor, tokens: Tensor) -> Tensor:
        """Say which rows may draft after a token.

        Args:
            probabilities: That the draft gave all tokens, [rows, vocabulary].
            tokens: The token that was chosen, LongTensor [rows].

        Returns:
            BoolTensor [rows] on the CPU.
        """
        return (probabilities.gather(1, tokens[:, None]).squeeze(1) >= self.stops_below).cpu()
