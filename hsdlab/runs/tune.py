"""Tune: search the settings of scheduled strategies for the fastest that keeps the quality, or the best at a speed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

from lightning.pytorch import Trainer
from rich.console import Console
from torch import Tensor

from hsdlab.data import GenerationDataModule
from hsdlab.decoding.cost import ideal_speedup
from hsdlab.decoding.decisions import Decisions
from hsdlab.decoding.families import decoder_parts
from hsdlab.decoding.forced import LayerSchedule
from hsdlab.decoding.sub_layers import depth_sum, step_layers
from hsdlab.errors import UserError
from hsdlab.modules import DecodeModule
from hsdlab.progress import Steps
from hsdlab.records.comparison import compare_results
from hsdlab.records.provenance import RunInfo, run_info
from hsdlab.records.run_folder import prediction_file
from hsdlab.records.strategy import StrategyConfig
from hsdlab.records.strategy_result import StrategyResult
from hsdlab.records.tuning import DecodedSetting, TunedSetting, TuningGoal, TuningResult
from hsdlab.reporting.pareto import frontier
from hsdlab.reporting.tables import console
from hsdlab.reporting.tuning import print_tuning, write_tuning
from hsdlab.runs.folder import holding_folder
from hsdlab.runs.replayed import own_texts, search_seed, searched
from hsdlab.runs.strategies import StrategyRuns
from hsdlab.runs.tunable import check_tuning, scheduled_classes
from hsdlab.strategies import FullDepth, ScheduledStrategy
from hsdlab.tuning import Goal, ReplayScore, ScoreFile, Setting, search


@dataclass(frozen=True)
class TuningOptions:
    """What a tuning looks for, and how long.

    Attributes:
        goal: A largest loss of quality, or a least speed-up.
        classes: Names of the classes whose settings are searched, or dotted paths of your own with a `propose`.
        first: Settings to try before any is proposed, such as those that the model was trained for or a paper's.
        metric: The quality: rouge1, rouge2, rougeL, bleu1 to bleu4, bertscore_precision, bertscore_recall or
            bertscore_f1.
        trials: How many settings are tried, the first ones among them.
        examples: How many of full depth's texts a setting is scored on, at most.
        decodes: The most settings to decode besides full depth.
    """

    goal: Goal
    classes: Sequence[str] = ("HSD", "SkipDecode")
    first: Sequence[ScheduledStrategy] = ()
    metric: str = "rougeL"
    trials: int = 100
    examples: int = 32
    decodes: int = 8


@holding_folder
def tune(
    trainer: Trainer,
    module: DecodeModule,
    datamodule: GenerationDataModule,
    options: TuningOptions,
    folder: str | Path,
    *,
    run: RunInfo | None = None,
) -> TuningResult:
    """Search the settings of scheduled strategies: the fastest that keeps the quality, or the best at a speed-up.

    The validation split is decoded at full depth. Then Optuna proposes settings. Those whose schedule allows enough
    speed are scored on full depth's own texts by one masked pass each, without decoding. Last, settings that none beats
    in speed and score are decoded, in an order that soon finds the border between those that meet the goal and those
    that do not. The report (tuning.md, tuning.json, frontier.png) is written anew after each setting; a run that is cut
    short goes on with its scores and predictions if `module.resume` is set.

    Args:
        trainer: Runs the module; its callbacks hold no strategy.
        module: Holds the loaded model.
        datamodule: Its validation split is decoded.
        options: The goal, and the size of the search.
        folder: Folder of the report, the scores and the predictions. A missing folder is created.
        run: Provenance for the record. None notes it now.

    Returns:
        All settings; its `chosen_row` is the chosen one, or full depth where none meets the goal.

    Raises:
        UserError: An option out of its range, a class or setting without a schedule, a class without `propose`, a
            metric that is not computed, two examples of one id, or a quality of 0 at full depth.
        RuntimeError: The search ended without a result, which is an error in hsdlab.
    """
    datamodule.prepare_data()
    check_tuning(
        options.classes,
        max_loss=options.goal.max_loss,
        speedup=options.goal.speedup,
        metric=options.metric,
        computed=list(module.text_metrics()),
        max_new_tokens=module.max_new_tokens,
        examples=[example.id for example in datamodule.examples("validation")],
        first=options.first,
        trials=options.trials,
    )
    terminal = console(quiet=not trainer.is_global_zero)
    runs = StrategyRuns(trainer, module, datamodule, "validation")
    tuning = _Tuning(runs, options, Path(folder), run or run_info(generation=module.generation().record()), terminal)
    try:
        tuning.search()
        while tuning.decode_next():
            pass
    finally:
        if tuning.found is not None and trainer.is_global_zero:
            print_tuning(tuning.found, terminal)
    if tuning.found is None:
        raise RuntimeError("The search is always reported, and it was not.")
    return tuning.found


class _Tuning:
    """A tuning under way.

    Args:
        runs: Decodes the validation split.
        options: What is looked for.
        folder: Holds scores.jsonl and predictions/.
        run: Provenance.
        terminal: Where to say what is done.

    Attributes:
        found: The result as far as it has come; None before the search has ended.
    """

    def __init__(
        self, runs: StrategyRuns, options: TuningOptions, folder: Path, run: RunInfo, terminal: Console
    ) -> None:
        self.runs, self.options, self.folder, self.run, self.terminal = runs, options, folder, run, terminal
        self.trainer, self.module = runs.trainer, runs.module
        self.found: TuningResult | None = None
        self._decoded: dict[int, StrategyResult] = {}  # by place on the frontier

    @cached_property
    def full(self) -> StrategyResult:
        """What full depth gives.

        Raises:
            UserError: Nothing that a share could be kept of.
        """
        self.terminal.print(f"Reference: {FullDepth()!r}", highlight=False)
        full = self.runs.result(FullDepth(), prediction_file(self.folder, repr(FullDepth())))
        quality = full.scores[self.options.metric]
        if not quality > 0:
            raise UserError(
                f"Full depth has a {self.options.metric} of {quality:g}: there is no quality to keep a share of."
            )
        return full

    def search(self) -> None:
        """Decode at full depth and try all settings; in the first process, whose findings the others take over."""
        full = self.full
        self._settings, self._reference_score, self._scored_texts = searched(
            self.runs, self.terminal, self.options.trials, lambda steps: self._searched(full, steps)
        )
        self._frontier = settings_on_the_frontier(self._settings)
        self._report()

    def decode_next(self) -> bool:
        """Decode the next setting of the frontier; say whether there was one whose result could change the choice."""
        place = None
        if self.trainer.is_global_zero and len(self._decoded) < self.options.decodes:
            place = self._next_place()
        place = self.trainer.strategy.broadcast(place)  # all processes decode the same setting
        if place is None:
            return False
        strategy = self._frontier[place].strategy
        most = min(self.options.decodes, len(self._frontier))
        self.terminal.print(f"Setting {len(self._decoded) + 1} of at most {most}: {strategy!r}", highlight=False)
        self._decoded[place] = self.runs.result(strategy, prediction_file(self.folder, repr(strategy)))
        self._report()
        return True

    def _next_place(self) -> int | None:
        return None if self.found is None else self.options.goal.next_to_decode(self.found.verdicts)

    def _searched(self, full: StrategyResult, steps: Steps) -> tuple[list[Setting], float, int]:
        """Return the settings that were tried, the score of full depth, and on how many texts they were scored."""
        net = self.module.model.to(self.trainer.strategy.root_device)
        num_layers, max_steps = decoder_parts(net).num_layers, self.module.max_new_tokens
        taken = [sum(record.decode_steps > step for record in full.examples) for step in range(max_steps - 1)]
        batches = own_texts(self.runs, full, self.options.examples)
        file = ScoreFile(self.folder / "scores.jsonl")

        @cache
        def replay_score() -> ReplayScore:
            return ReplayScore(net, batches)

        def score(strategy: ScheduledStrategy, schedule: LayerSchedule) -> float:
            known = file.get(schedule)
            if known is None:
                known = replay_score()(schedule)
                file.add(schedule, strategy.config(), known)
            return known

        def cost(schedule: Tensor) -> tuple[float, float]:
            run_layers = sum(texts * depth_sum(step, dims=1) for texts, step in zip(taken, schedule[:-1], strict=True))
            return run_layers / sum(taken), ideal_speedup(net, [step_layers(step) for step in schedule[:-1]], taken)

        settings = search(
            scheduled_classes(self.options.classes),
            num_layers=num_layers,
            max_steps=max_steps,
            cost=cost,
            score=score,
            least_ideal_speedup=self.options.goal.least_ideal_speedup,
            trials=steps.counting(range(self.options.trials)),
            seed=search_seed(),
            first=self.options.first,
        )
        whole = LayerSchedule(Decisions(FullDepth(), num_layers, max_steps))
        return settings, score(FullDepth(), whole), sum(len(batch["input_ids"]) for batch in batches)

    def _report(self) -> None:
        """Note what has been found so far, and write it."""
        goal, metric, places = self.options.goal, self.options.metric, sorted(self._decoded)
        comparison = compare_results([self.full, *(self._decoded[place] for place in places)], self.run)
        shares = {
            place: row.percent_of_baseline[metric].value / 100
            for place, row in zip(places, comparison.rows[1:], strict=True)
        }
        met = {
            place: goal.met(shares[place], row.speed_up) for place, row in zip(places, comparison.rows[1:], strict=True)
        }
        verdicts = [met.get(place) for place in range(len(self._frontier))]
        self.found = TuningResult(
            run=self.run,
            goal=TuningGoal(goal.max_loss, goal.speedup),
            metric=metric,
            scored_texts=self._scored_texts,
            reference_nats_per_token=self._reference_score,
            settings=tuple(map(_tuned_setting, self._settings)),
            frontier=tuple(self._settings.index(setting) for setting in self._frontier),
            decoded=tuple(DecodedSetting(place, met[place]) for place in places),
            comparison=comparison,
            chosen=goal.chosen(verdicts, [shares.get(place, math.nan) for place in range(len(self._frontier))]),
            another_might_be_better=goal.next_to_decode(verdicts) is not None,
        )
        if self.trainer.is_global_zero:
            write_tuning(self.found, self.folder)


def _tuned_setting(setting: Setting) -> TunedSetting:
    return TunedSetting(
        name=repr(setting.strategy),
        strategy=StrategyConfig.of(setting.strategy.config()),
        average_layers=setting.average_layers,
        ideal_speed_up=setting.ideal_speedup,
        nats_per_token=setting.score,
    )


def settings_on_the_frontier(settings: Sequence[Setting]) -> list[Setting]:
    """Find the settings that skip layers and that no other one beats in both ideal speed-up and score.

    Args:
        settings: In the order in which they were tried. Those without a finite score are left out.

    Returns:
        The frontier, slowest first. Of settings with equal figures it has the first.
    """
    points = {
        (-setting.ideal_speedup, -setting.score): setting
        for setting in reversed(settings)  # of equal ones the first stays
        if setting.score is not None and math.isfinite(setting.score) and setting.ideal_speedup > 1
    }
    return [points[point] for point in reversed(frontier(list(points)))]
