"""InspectionResult: how much each layer contributes to a model's predictions on some text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from hsdlab.records import version_1
from hsdlab.records.bootstrap import Estimate
from hsdlab.records.document import Document, Upgrade
from hsdlab.records.model_info import ModelInfo
from hsdlab.records.provenance import RunInfo


@dataclass(frozen=True)
class LayerReliability:
    """How well the confidence after a layer tells whether the layer's prediction equals the last layer's.

    A case is one decode step. It is positive where the two predictions are equal.

    Attributes:
        auroc: Area under the ROC curve of the softmax response; NaN where all cases are positive or all negative.
        saturation_auroc: The same of hidden-state saturation, the cosine between the layer's input and its output.
        calibration_error: Expected calibration error of the softmax response, from 0 to 1.
        confidence: Calibration curve: mean softmax response in each bin; NaN in an empty bin.
        rate: Share of the positive cases in each bin; NaN in an empty bin.
        count: Cases in each bin.
    """

    auroc: float
    saturation_auroc: float
    calibration_error: float
    confidence: tuple[float, ...]
    rate: tuple[float, ...]
    count: tuple[int, ...]


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
        reliability: Of its confidence; None where an earlier version did not measure it.
    """

    layer: int
    agreement: Estimate
    saturation: Estimate
    confidence: Estimate
    cosine: Estimate
    dropped_loss: Estimate
    dropped_agreement: Estimate
    reliability: LayerReliability | None = None


@dataclass(frozen=True)
class EarlierInspection:
    """What `inspect` measured on the same examples before, such as on the model before training.

    Attributes:
        model: The model that was inspected.
        layers: One entry per layer, from the first to the last.
        exits: Layers after which that model was trained to exit, ascending; empty where it names none.
        run: Versions, commit and machine; None where they were not noted.
    """

    model: ModelInfo
    layers: tuple[InspectedLayer, ...]
    exits: tuple[int, ...] = ()
    run: RunInfo | None = None


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
        exits: Layers after which the model was trained to exit, ascending; empty where it names none. Their
            predictions use the exit's adapter.
        examples_hash: Fingerprint of the examples' tokens, 16 digits; None where it was not taken.
        before: The earlier inspection that this one is compared with; None without one.
    """

    kind: ClassVar[str] = "inspection"
    upgrades: ClassVar[Mapping[int, Upgrade]] = {1: version_1.inspection}

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
    exits: tuple[int, ...] = ()
    examples_hash: str | None = None
    before: EarlierInspection | None = None
