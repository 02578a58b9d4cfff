"""ExitQuality: how good an exit classifier is, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from hsdlab.records.document import Document
from hsdlab.records.provenance import RunInfo


@dataclass(frozen=True)
class ExitQuality(Document):
    """Figures of an exit classifier on the validation split, one of each layer; exit_classifier.json.

    Attributes:
        agreement: How often the layer's prediction is the last one's.
        f1: F1 at a probability of 0.5.
        auroc: Area under the ROC curve; not a number where one kind of cases is missing.
        calibration_error: Expected calibration error.
        confidence: Reliability diagram: mean confidence in each bin, [layers][bins].
        rate: Share of the cases in each bin in which the prediction is the last layer's, [layers][bins].
        count: Cases in each bin, [layers][bins].
        run: What it was made with.
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
