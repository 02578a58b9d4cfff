"""TuningResult: what a tuning searched, what of it was decoded, and what was chosen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from hsdlab.records import version_1
from hsdlab.records.comparison import Comparison, ComparisonRow
from hsdlab.records.document import Document
from hsdlab.records.provenance import RunInfo
from hsdlab.records.strategy import StrategyConfig


@dataclass(frozen=True)
class TuningGoal:
    """What was looked for: one of the two is given.

    Attributes:
        max_loss: The largest share of full depth's quality that may be lost.
        speedup: The least measured speed-up of a decode step.
    """

    max_loss: float | None = None
    speedup: float | None = None


@dataclass(frozen=True)
class TunedSetting:
    """A setting that was tried.

    Attributes:
        name: The strategy as the user would write it.
        strategy: Its class and arguments.
        average_layers: Layers per decode step that its schedule runs over full depth's own texts.
        ideal_speed_up: The most that it can gain over them: weights read at full depth over weights read under it.
        nats_per_token: Mean negative log-likelihood of full depth's tokens under it; None where the schedule allows too
            little speed to be scored, not a number where the score is none.
    """

    name: str
    strategy: StrategyConfig
    average_layers: float
    ideal_speed_up: float
    nats_per_token: float | None = None


@dataclass(frozen=True)
class DecodedSetting:
    """A setting of the frontier that was decoded.

    Attributes:
        place: On the frontier.
        met_goal: Whether it meets the goal.
    """

    place: int
    met_goal: bool


@dataclass(frozen=True)
class TuningResult(Document):
    """What a tuning found; tuning.json.

    Attributes:
        run: What it was made with.
        goal: What was looked for.
        metric: The quality; a metric of the comparison.
        scored_texts: How many texts the scores are of.
        reference_nats_per_token: The score of full depth on its own texts.
        settings: All different settings that were tried.
        frontier: Places in `settings` of those that no other one beats in ideal speed-up and score, slowest first.
        decoded: Settings of the frontier that were decoded, slowest first.
        comparison: Full depth and what was decoded, in this order.
        chosen: The place on the frontier of the setting to take; None where it is full depth.
        another_might_be_better: Whether a setting that was not decoded could change the choice.
    """

    kind: ClassVar[str] = "tuning"
    oldest: ClassVar[int] = 1
    upgrade = staticmethod(version_1.tuning)

    run: RunInfo
    goal: TuningGoal
    metric: str
    scored_texts: int
    reference_nats_per_token: float
    settings: tuple[TunedSetting, ...]
    frontier: tuple[int, ...]
    decoded: tuple[DecodedSetting, ...]
    comparison: Comparison
    chosen: int | None
    another_might_be_better: bool

    @property
    def frontier_settings(self) -> list[TunedSetting]:
        """The settings of the frontier, slowest first."""
        return [self.settings[index] for index in self.frontier]

    @property
    def rows(self) -> dict[int, ComparisonRow]:
        """The row of the comparison of each decoded place of the frontier."""
        return {each.place: row for each, row in zip(self.decoded, self.comparison.rows[1:], strict=True)}

    @property
    def verdicts(self) -> list[bool | None]:
        """Whether each setting of the frontier meets the goal; None where it was not decoded."""
        met = {each.place: each.met_goal for each in self.decoded}
        return [met.get(place) for place in range(len(self.frontier))]

    @property
    def chosen_row(self) -> ComparisonRow:
        """The chosen setting's row of the comparison; full depth's where none meets the goal."""
        return self.comparison.rows[0] if self.chosen is None else self.rows[self.chosen]

    def share(self, row: ComparisonRow) -> float:
        """Return a row's quality as a share of full depth's."""
        return row.percent_of_baseline[self.metric].value / 100
