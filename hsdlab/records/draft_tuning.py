"""DraftTuningResult: the drafts that `tune --lossless` searched, those that it measured, and the fastest of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from hsdlab.records.comparison import Comparison, ComparisonRow
from hsdlab.records.document import Document
from hsdlab.records.provenance import RunInfo
from hsdlab.records.strategy import StrategyConfig


@dataclass(frozen=True)
class DraftPrediction:
    """What a draft of one length and one vocabulary is predicted to give.

    Attributes:
        num_draft_tokens: Tokens that are drafted before a verification.
        draft_vocabulary: The tokens for which the head of the draft is computed: how many, or their file; None for all.
        draft_cost: Weights that a draft step reads, divided by those that a decode step at full depth reads.
        acceptance_rate: Accepted tokens divided by drafted ones; NaN where nothing is drafted.
        tokens_per_verification: Decode steps at full depth divided by verifications.
        speed_up: Speed-up over full depth, for one sequence at a time, if reading the weights takes the time.
    """

    num_draft_tokens: int
    draft_vocabulary: int | str | None
    draft_cost: float
    acceptance_rate: float
    tokens_per_verification: float
    speed_up: float


@dataclass(frozen=True)
class TunedDraft:
    """A setting that was tried as a draft.

    Attributes:
        name: The strategy that drafts, as the user would write it.
        strategy: Its class and arguments.
        average_layers: Layers per draft step, averaged over its schedule.
        predictions: One for each length and vocabulary.
    """

    name: str
    strategy: StrategyConfig
    average_layers: float
    predictions: tuple[DraftPrediction, ...]

    @property
    def best(self) -> DraftPrediction:
        """The prediction with the highest speed-up."""
        return max(self.predictions, key=lambda each: each.speed_up)


@dataclass(frozen=True)
class MeasuredDraft:
    """A draft that was measured with one length and one vocabulary.

    Attributes:
        draft: Its index in the drafts.
        prediction: Index in the predictions of that draft.
        other_texts: Number of texts that differ from those of `FullDepth`: two tokens were equally probable up to the
            rounding of the dtype.
    """

    draft: int
    prediction: int
    other_texts: int


@dataclass(frozen=True)
class DraftTuningResult(Document):
    """What `tune --lossless` found; tuning.json.

    Attributes:
        run: Versions, commit, configuration and machine.
        scored_texts: Number of texts of full depth on which the predictions are made.
        drafts: All different settings that were tried.
        measured: Those that were measured with their lengths and vocabularies, the highest predicted speed-up first.
        comparison: Full depth and the measured drafts, in this order. Each batch was decoded by all in turn.
        chosen: Index in `measured` of the fastest; None where none is faster than full depth.
    """

    kind: ClassVar[str] = "tuning of drafts"

    run: RunInfo
    scored_texts: int
    drafts: tuple[TunedDraft, ...]
    measured: tuple[MeasuredDraft, ...]
    comparison: Comparison
    chosen: int | None

    @property
    def rows(self) -> tuple[ComparisonRow, ...]:
        """The row of each measured draft."""
        return self.comparison.rows[1:]

    @property
    def predictions(self) -> list[DraftPrediction]:
        """The prediction for each measured draft."""
        return [self.drafts[each.draft].predictions[each.prediction] for each in self.measured]

    @property
    def chosen_row(self) -> ComparisonRow:
        """The row of the fastest; full depth's where no draft is faster."""
        return self.comparison.rows[0] if self.chosen is None else self.rows[self.chosen]
