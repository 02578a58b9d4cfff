"""The order of training: shuffled batches; a resumed run continues with the first batch that it has not seen."""

import itertools
import random
from collections.abc import Iterator
from functools import partial
from typing import Any

from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

from hsdlab.data.batches import Pair, Rows, collate_pairs
from hsdlab.errors import UserError

POOL_BATCHES = 50  # whose pairs are sorted by length together, as transformers' group_by_length does


class _Shuffled(DistributedSampler[int]):
    """An order that depends on the seed and the epoch only, from any place on."""

    start = 0  # rows of this process to pass over
    batch_size = 1
    lengths: list[int] | None = None  # of the pairs in tokens, to make batches of pairs of similar length

    def __iter__(self) -> Iterator[int]:
        order = list(super().__iter__())
        if self.lengths is not None:
            order = self._grouped(order, self.lengths)
        return itertools.islice(order, self.start, None)

    def _grouped(self, order: list[int], lengths: list[int]) -> list[int]:
        """Sort pools of some batches by length, then shuffle the batches; one that is not full stays the last."""
        pools = _cut(order, POOL_BATCHES * self.batch_size)
        batches = [batch for pool in pools for batch in _cut(sorted(pool, key=lengths.__getitem__), self.batch_size)]
        rest = [batches.pop()] if batches and len(batches[-1]) < self.batch_size else []
        random.Random(f"{self.seed} {self.epoch}").shuffle(batches)
        return list(itertools.chain(*batches, *rest))


def _cut(rows: list[int], size: int) -> Iterator[list[int]]:
    return (rows[start : start + size] for start in range(0, len(rows), size))


class TrainingLoader(DataLoader[Pair]):
    """Batches of shuffled pairs; Lightning saves the place in the epoch with a checkpoint and resumes there.

    A plain loader starts its epoch over when a run is resumed in the middle of it: some pairs would be seen twice,
    others never. Several processes share the pairs; where their number does not divide, some are repeated.

    Args:
        pairs: The pairs.
        batch_size: Pairs per batch and process.
        pad_token_id: See `collate_pairs`.
        seed: Of the order.
        group_by_length: Put pairs of similar length into a batch: less padding, an order less random.
        world_size: Number of processes.
        rank: Of this process.
        num_workers: Worker processes that load batches.

    Raises:
        UserError: There are fewer pairs than processes.
    """

    sampler: _Shuffled

    def __init__(
        self,
        pairs: Rows[Pair],
        *,
        batch_size: int,
        pad_token_id: int,
        seed: int,
        group_by_length: bool = False,
        world_size: int = 1,
        rank: int = 0,
        num_workers: int = 0,
    ) -> None:
        if len(pairs) < world_size:
            raise UserError(
                f"The train split makes {len(pairs)} training pairs for {world_size} processes: give fewer devices or "
                "more examples"
            )
        sampler = _Shuffled(pairs, num_replicas=world_size, rank=rank, shuffle=True, seed=seed)
        if group_by_length:
            sampler.batch_size = batch_size
            sampler.lengths = [pair.tokens for pair in pairs.rows]
        super().__init__(
            pairs,
            batch_size=batch_size,
            sampler=sampler,
            num_workers=num_workers,
            collate_fn=partial(collate_pairs, pad_token_id=pad_token_id),
        )
        self._place = {"epoch": 0, "batches": 0}
        self._resumed: dict[str, int] | None = None

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """Yield the batches of the sampler's epoch, those before the loaded place left out."""
        # Nothing runs before the first batch is requested: until then Lightning may still set the epoch.
        epoch = self.sampler.epoch
        resumed, self._resumed = self._resumed, None
        done = resumed["batches"] if resumed is not None and resumed["epoch"] == epoch else 0
        self._place = {"epoch": epoch, "batches": done}
        self.sampler.start = done * (self.batch_size or 1)
        for batch in super().__iter__():
            self._place["batches"] += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Return the place in the order of training.

        Returns:
            "epoch", and "batches": how many of its batches were handed out in this process.
        """
        return dict(self._place)

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Begin the next iteration at a place, if it is in the same epoch.

        Args:
            state: What `state_dict` returned.
        """
        self._resumed = dict(state)
