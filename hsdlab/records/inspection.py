"""InspectionResult: what each layer is worth to a model on some text."""

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

    Attributes:
        layer: Its index.
        agreement: Share of the steps in which its prediction is the last layer's.
        saturation: Share of the steps in which so are the predictions of all later layers.
        confidence: Softmax response of its prediction.
        cosine: Of its output and its input.
        dropped_loss: Nats per token that dropping it costs.
        dropped_agreement: Share of the steps in which the prediction without it is the full model's.
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
    """What an inspection measured; inspect.json.

    Attributes:
        model: Which model.
        text: What the text after the prompts is.
        examples: How many there are.
        decode_steps: How many there are.
        loss: Of the text at full depth, nats per token.
        oracle_layers: Layers up to the first whose prediction is the last one's.
        saturated_layers: Layers up to the first after which the prediction no longer changes.
        cheapest_first: Layers in the order of what dropping them costs.
        layers: What was measured of each.
        run: What it was made with; None where it was not noted.
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
