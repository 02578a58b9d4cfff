"""TuningResult: the settings that `tune` searched, those of them that it decoded, and the one that it chose."""

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
    """What `tune` looks for. One of the two is given.

    Attributes:
        max_loss: The largest share of full depth's quality that may be lost, from 0 to 1.
        speedup: The smallest measured speed-up of a decode step that is enough.
    """

    max_loss: float | None = None
    speedup: float | None = None


@dataclass(frozen=True)
class TunedSetting:
    """A setting that was tried.

    Attributes:
        name: The strategy as the user would write it.
        strategy: Its class and arguments.
        average_layers: Executed layers per decode step under its schedule, over the texts that full depth decodes.
        ideal_speed_up: Bytes of weights read at full depth divided by those read under the schedule: the most that it
            can gain.
        nats_per_token: Mean negative log-likelihood of full depth's tokens under the setting. None where the ideal
            speed-up was too small for the setting to be scored; NaN where the score is no finite number.
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
        place: Its index in the frontier.
        met_goal: Whether its measured quality or speed-up reaches the goal.
    """

    place: int
    met_goal: bool


@dataclass(frozen=True)
class TuningResult(Document):
    """What `tune` found; tuning.json.

    Attributes:
        run: Versions, commit, configuration and machine.
        goal: The goal of the search.
        metric: The metric that measures the quality, such as "rougeL".
        scored_texts: Number of texts over which the scores are means.
        reference_nats_per_token: The score of full depth on its own texts.
        settings: All different settings that were tried.
        frontier: Indices in `settings` of those that none beats in both ideal speed-up and score, slowest first.
        decoded: Settings of the frontier that were decoded, slowest first.
        comparison: Full depth and the decoded settings, in this order.
        chosen: Index in the frontier of the chosen setting; None where full depth was chosen.
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
        """Index in the frontier of each decoded setting to its row of the comparison."""
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
        """Express a row's quality as a share of full depth's.

        Args:
            row: A row of this result's comparison.

        Returns:
            The ratio for `metric`; 1 for the same quality.
        """
        return row.percent_of_baseline[self.metric].value / 100
