"""ModelInfo: which model a measurement was made on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelInfo:
    """The model of a measurement.

    Attributes:
        name: As it was loaded; empty for a model made in Python.
        class_name: Of transformers.
        dtype: Of its weights, such as "float32".
        device: Where it ran.
        num_layers: L, its decoder layers.
        parameters: How many it has.
    """

    name: str
    class_name: str
    dtype: str
    device: str
    num_layers: int
    parameters: int
