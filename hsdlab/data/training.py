"""The order of training: shuffled batches that a resumed run goes on with where it was cut short."""

import itertools
from collections.abc import Iterator
from functools import partial
from typing import Any

from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

from hsdlab.data.batches import Pair, Rows, collate_pairs


class _Shuffled(DistributedSampler[int]):
    """An order that depends on the seed and the epoch only, from any place on."""

    start = 0  # rows of this process to pass over

    def __iter__(self) -> Iterator[int]:
        return itertools.islice(super().__iter__(), self.start, None)


class TrainingLoader(DataLoader[Pair]):
    """Batches of shuffled pairs; Lightning saves the place in the epoch with a checkpoint and goes on from there.

    A plain loader begins its epoch anew when a run is resumed in the middle of it: some pairs would be seen twice,
    others never. Several processes share the pairs; where their number does not divide, some are repeated.

    Args:
        pairs: The pairs.
        batch_size: Pairs per batch and process.
        pad_token_id: See `collate_pairs`.
        seed: Of the order.
        world_size: Number of processes.
        rank: Of this process.
        num_workers: Worker processes that load batches.

    Raises:
        ValueError: There are fewer pairs than processes.
    """

    sampler: _Shuffled

    def __init__(
        self,
        pairs: Rows[Pair],
        *,
        batch_size: int,
        pad_token_id: int,
        seed: int,
        world_size: int = 1,
        rank: int = 0,
        num_workers: int = 0,
    ) -> None:
        if len(pairs) < world_size:
            raise ValueError(
                f"The train split makes {len(pairs)} training pairs for {world_size} processes: give fewer devices or "
                "more examples"
            )
        super().__init__(
            pairs,
            batch_size=batch_size,
            sampler=_Shuffled(pairs, num_replicas=world_size, rank=rank, shuffle=True, seed=seed),
            num_workers=num_workers,
            collate_fn=partial(collate_pairs, pad_token_id=pad_token_id),
        )
        self._place = {"epoch": 0, "batches": 0}
        self._resumed: dict[str, int] | None = None

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """Yield the batches of the sampler's epoch, those before the loaded place left out."""
        # Nothing runs before the first batch is asked for: until then Lightning may still set the epoch.
        epoch = self.sampler.epoch
        resumed, self._resumed = self._resumed, None
        done = resumed["batches"] if resumed is not None and resumed["epoch"] == epoch else 0
        self._place = {"epoch": epoch, "batches": done}
        self.sampler.start = done * (self.batch_size or 1)
        for batch in super().__iter__():
            self._place["batches"] += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Return the epoch and how many of its batches were given out."""
        return dict(self._place)

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Begin the next iteration at a place that `state_dict` gave, if it is of the same epoch."""
        self._resumed = dict(state)
