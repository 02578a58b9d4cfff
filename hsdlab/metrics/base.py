"""What the metrics share: states that only add up, and the check of text input."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from hsdlab.errors import UserError


class SumMetric(Metric):
    """A metric whose states are sums, so that the result is exact also for uneven shares over processes.

    This class avoids three traps of torchmetrics 1.9 for all metrics:

    - A state is replaced, never changed in place. Under ``ddp_spawn`` on the CPU the first states are memory
      shared between the processes, and an in-place ``+=`` would be counted once per process.
    - The states keep their dtype when the module that holds the metric is cast.
      ``module.to(torch.bfloat16)``, which Lightning calls for ``precision="bf16-true"``, would otherwise make
      every sum a bfloat16.
    - A state stays where it is when the module moves to a device without float64 (Apple's MPS, whose ``to`` raises a
      TypeError). Amounts from that device are moved to the state.
    """

    full_state_update = False
    is_differentiable = False

    def _add(self, **amounts: Tensor | float) -> None:
        """Add each amount to the state of that name."""
        for name, amount in amounts.items():
            state: Tensor = getattr(self, name)
            setattr(self, name, state + (amount.to(state.device) if isinstance(amount, Tensor) else amount))

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> Any:
        """Move the states to where ``fn`` puts them, if that is possible, but keep their dtype."""

        def move_only(tensor: Tensor) -> Tensor:
            try:
                return tensor.to(fn(tensor).device)
            except TypeError:
                if tensor.dtype != torch.float64:
                    raise
                return tensor  # float32 would be exact for integers up to 2 ** 24 only

        return super()._apply(move_only, exclude_state)


def zero() -> Tensor:
    """Make the start value of a sum.

    Returns:
        Tensor []: 0 in float64, in which integers stay exact up to 2 ** 53.
    """
    return torch.zeros((), dtype=torch.float64)


def check_texts(predictions: list[str], references: list[list[str]]) -> None:
    """Refuse what would silently get a wrong score: strings in place of lists, lists of different lengths.

    Args:
        predictions: One generated text per example.
        references: One list of at least one text per example.

    Raises:
        UserError: The input is not one list of at least one reference text per prediction text.
    """
    for name, value in (("predictions", predictions), ("references", references)):
        if not isinstance(value, list | tuple):
            raise UserError(
                f"`{name}` must be a list with one entry per example, got {type(value).__name__}: "
                f"{value!r:.80}. For one example pass predictions=[text], references=[[text, ...]]."
            )
    if len(predictions) != len(references):
        raise UserError(
            f"`predictions` and `references` must be of the same length, got {len(predictions)} predictions "
            f"and {len(references)} lists of references. Pass one list of references per prediction."
        )
    for index, (prediction, texts) in enumerate(zip(predictions, references, strict=True)):
        if not isinstance(prediction, str):
            raise UserError(
                f"Prediction {index} must be a string, got {type(prediction).__name__}: {prediction!r:.80}. "
                "Decode the tokens to text first."
            )
        if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
            raise UserError(
                f"The references of example {index} must be a list of strings, got {type(texts).__name__}: "
                f"{texts!r:.80}. Put a single reference into a list: [text]."
            )
        if not texts:
            raise UserError(
                f"Example {index} has an empty list of references, expected at least one. "
                "Leave the example out, or give it a reference."
            )


class TextMetric(SumMetric):
    """Scores each example separately and keeps the sum of the scores' numbers.

    Args:
        sums: Start value of the sum over examples: zeros [numbers], in the dtype of the sum.
    """

    higher_is_better = True
    sums: Tensor
    examples: Tensor

    def __init__(self, sums: Tensor) -> None:
        super().__init__()
        self.add_state("sums", sums, dist_reduce_fx="sum")
        self.add_state("examples", zero(), dist_reduce_fx="sum")

    @abstractmethod
    def score(self, predictions: list[str], references: list[list[str]]) -> list[Any]:
        """Score each example separately, without changing the metric.

        Args:
            predictions: One generated text per example.
            references: One list of at least one text per example.

        Returns:
            One score per example, as `update_from_scores` takes them.
        """

    @abstractmethod
    def _row(self, score: Any) -> list[float] | list[int]:
        """Return one example's score as the numbers to sum, in the order of ``sums``."""

    def update(self, predictions: list[str], references: list[list[str]]) -> None:
        """Score examples and add them.

        Args:
            predictions: One generated text per example.
            references: One list of at least one text per example.

        Raises:
            UserError: The input is not one list of at least one reference per prediction.
        """
        self._add_scores(self.score(predictions, references))

    def update_from_scores(self, scores: list[Any]) -> None:
        """Add examples that ``score``, or the pure function behind it, has already scored.

        Args:
            scores: One score per example, as ``score`` returns them.
        """
        # torchmetrics does this around `update` only: a new state makes the computed value stale.
        self._computed = None
        self._update_count += 1
        self._add_scores(scores)

    def _add_scores(self, scores: list[Any]) -> None:
        rows = torch.tensor([self._row(score) for score in scores], dtype=self.sums.dtype)
        rows = rows.reshape(len(scores), len(self.sums))  # (examples, numbers), also for no example
        self._add(sums=rows.sum(dim=0), examples=len(scores))


class MeanScore(TextMetric):
    """The mean over examples of a dictionary of scores.

    Args:
        keys: The scores' names, in the order of the result.
    """

    def __init__(self, keys: tuple[str, ...]) -> None:
        super().__init__(torch.zeros(len(keys), dtype=torch.float64))
        self.keys = keys

    def _row(self, score: dict[str, float]) -> list[float]:
        return [score[key] for key in self.keys]

    def compute(self) -> dict[str, Tensor]:
        """Compute the mean of each score over the examples.

        Returns:
            Key to a float64 tensor []; for text quality from 0 to 1. NaN where there was no example.
        """
        return dict(zip(self.keys, self.sums / self.examples, strict=True))
