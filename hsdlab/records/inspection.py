"""InspectionResult: how much each layer contributes to a model's predictions on some text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from hsdlab.records import version_1
from hsdlab.records.bootstrap import Estimate
from hsdlab.records.document import Document
from hsdlab.records.model_info import ModelInfo
from hsdlab.records.provenance import RunInfo


@dataclass(frozen=True)
class InspectedLayer:
    """Means over the decode steps for one layer.

    A layer's prediction is its intermediate prediction: the most probable token after the final norm and the head.

    Attributes:
        layer: Its index, from 0.
        agreement: Share of the steps in which its prediction equals the last layer's, from 0 to 1.
        saturation: Share of the steps in which its prediction and those of all later layers equal the last layer's.
        confidence: Softmax response of its prediction, from 0 to 1.
        cosine: Cosine between its input and its output, from -1 to 1.
        dropped_loss: Increase of the loss when only this layer is dropped, nats per token.
        dropped_agreement: Share of the steps in which the prediction without the layer equals the full model's.
    """

    layer: int
    agreement: Estimate
    saturation: Estimate
    confidence: Estimate
    cosine: Estimate
    dropped_loss: Estimate
    dropped_agreement: Estimate


@dataclass(frozen=True)
class InspectionResult(Document):
    """What `inspect` measured; inspect.json.

    Attributes:
        model: The model that was inspected.
        text: What was read after the prompts: each example's first reference, or the model's own greedy text.
        examples: Number of examples with a decode step.
        decode_steps: Number of decode steps of all examples.
        loss: Negative log-likelihood of the text at full depth, nats per token.
        oracle_layers: Mean number of layers up to the first whose prediction equals the last layer's.
        saturated_layers: Mean number of layers up to the first after which the prediction no longer changes.
        cheapest_first: Layer indices in ascending order of `dropped_loss`.
        layers: One entry per layer, from the first to the last.
        run: Versions, commit and machine; None where they were not noted.
    """

    kind: ClassVar[str] = "inspection"
    oldest: ClassVar[int] = 1
    upgrade = staticmethod(version_1.inspection)

    model: ModelInfo
    text: str
    examples: int
    decode_steps: int
    loss: Estimate
    oracle_layers: Estimate
    saturated_layers: Estimate
    cheapest_first: tuple[int, ...]
    layers: tuple[InspectedLayer, ...]
    run: RunInfo | None = None
