"""Decodes that several laws read, each made once."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from hsdlab.strategies import SkipStrategy
from hsdlab.testing.watching import Decode, decode

DecodeCall = Callable[..., Decode]
"""Called as :func:`~hsdlab.testing.decode`."""


class RememberedDecodes:
    """Called as :func:`~hsdlab.testing.decode`; gives the same decode again where all arguments are equal.

    Strategies are equal if their classes and attributes are. A copy decodes, since a decode that changed the strategy
    would change its key. Arguments that cannot be pickled (a class inside a function, a ``logits_processor`` of one)
    are decoded each time.
    """

    def __init__(self) -> None:
        self._made: dict[Any, Decode] = {}
        self._models: list[PreTrainedModel] = []  # held, so that no other model gets the id of one of them

    def __call__(
        self,
        model: PreTrainedModel,
        strategy: SkipStrategy,
        mode: str = "greedy",
        rows: Tensor | None = None,
        **options: Any,
    ) -> Decode:
        """Decode, or return the decode that was made before; takes the arguments of :func:`decode`."""
        strategy = copy.deepcopy(strategy)
        arguments = (mode, None if rows is None else rows.tolist(), sorted(options.items()))
        try:
            key = id(model), type(strategy), pickle.dumps((strategy.__getstate__(), arguments))
        except (pickle.PicklingError, AttributeError, TypeError):
            return decode(model, strategy, mode, rows, **options)
        if key not in self._made:
            self._made[key] = decode(model, strategy, mode, rows, **options)
            if not any(model is known for known in self._models):
                self._models.append(model)
        return self._made[key]
