"""ExitQuality: how well an exit classifier or router predicts, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from hsdlab.records.document import Document
from hsdlab.records.provenance import RunInfo


@dataclass(frozen=True)
class ExitQuality(Document):
    """Figures of a network on the validation split, one per layer; exit_classifier.json or exit_router.json.

    A case is one layer at one token. It is positive where the layer's prediction equals the last layer's.

    Attributes:
        agreement: Share of the positive cases, from 0 to 1.
        f1: F1 of the network at a probability of 0.5.
        auroc: Area under the ROC curve; NaN where all cases are positive or all negative.
        calibration_error: Expected calibration error, from 0 to 1.
        confidence: Reliability diagram: mean probability of the network in each bin, [layers][bins]; NaN in an empty
            bin.
        rate: Share of the positive cases in each bin, [layers][bins]; NaN in an empty bin.
        count: Cases in each bin, [layers][bins].
        network: What is judged, in words: "exit classifier" or "exit router".
        layers: The layers, ascending. Empty stands for all layers from the first.
        run: Versions, commit, configuration and machine; None where they were not noted.
    """

    kind: ClassVar[str] = "exit classifier's quality"

    agreement: tuple[float, ...]
    f1: tuple[float, ...]
    auroc: tuple[float, ...]
    calibration_error: tuple[float, ...]
    confidence: tuple[tuple[float, ...], ...]
    rate: tuple[tuple[float, ...], ...]
    count: tuple[tuple[float, ...], ...]
    run: RunInfo | None = None
    network: str = "exit classifier"
    layers: tuple[int, ...] = ()
