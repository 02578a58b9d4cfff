"""ModelInfo: the model of a measurement."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelInfo:
    """The model of a measurement.

    Attributes:
        name: As it was loaded, such as "embedded:smollm2-135m"; empty for a model made in Python.
        class_name: Its class in transformers.
        dtype: Of its weights, such as "float32"; of quantised ones also how, such as "int8, float32".
        device: Where it ran, such as "cpu".
        num_layers: L, its decoder layers.
        parameters: Number of its parameters.
    """

    name: str
    class_name: str
    dtype: str
    device: str
    num_layers: int
    parameters: int
