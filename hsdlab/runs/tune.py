"""`evaluate.py tune`: what it refuses before long work, the search by score, and what of its frontier is decoded."""

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from hsdlab.data import GenerationDataModule
from hsdlab.data.sample import sample_batches
from hsdlab.decoding.cost import ideal_speedup
from hsdlab.decoding.families import decoder_parts
from hsdlab.decoding.forced import decode_steps
from hsdlab.errors import UserError
from hsdlab.modules import DecodeModule
from hsdlab.reporting import StrategyResult, TuningReport
from hsdlab.reporting.pareto import frontier
from hsdlab.runs.calibrate import COMPUTED_BY, check_computed, check_ids
from hsdlab.runs.strategies import StrategyRuns, prediction_file
from hsdlab.strategies import FullDepth, ScheduledStrategy, SkipStrategy
from hsdlab.tuning import Goal, ReplayScore, ScoreFile, Setting, search

TUNABLE = ("HSD", "SkipDecode", "StaticDepth")
CORPUS_METRICS = {**COMPUTED_BY, **dict.fromkeys(("bleu1", "bleu2", "bleu3", "bleu4"), "bleu")}
"""The metrics that have a figure of a whole split, and which of DecodeModule's `metrics` computes them."""


def scheduled_classes(names: Sequence[str]) -> list[type[ScheduledStrategy]]:
    """Return the classes of the names, short or dotted paths.

    Raises:
        UserError: A name of no class, of one that cannot be tuned, or two of one short name; or no name.
    """
    if not names:
        raise UserError(f"strategies is empty; expected some of {', '.join(TUNABLE)}, or a class of your own.")
    classes = [_scheduled_class(name) for name in names]
    short = [each.__name__ for each in classes]
    for name in short:
        if short.count(name) > 1:  # prediction files have the short name
            raise UserError(f"strategies lists {name} {short.count(name)} times: expected classes of different names.")
    return classes


def _scheduled_class(name: str) -> type[ScheduledStrategy]:
    expected = f"expected some of {', '.join(TUNABLE)}, or the dotted path of your own, such as my_package.MyClass"
    module, _, class_name = name.rpartition(".")
    try:
        found = getattr(import_module(module or "hsdlab.strategies"), class_name)
    except (ImportError, AttributeError) as error:
        raise UserError(f"strategies: unknown class {name!r}; {expected}.") from error
    if not isinstance(found, type) or not issubclass(found, SkipStrategy):
        raise UserError(f"strategies: {name} is no strategy; {expected}.")
    if not issubclass(found, ScheduledStrategy):
        raise UserError(
            f"strategies: {name} is no ScheduledStrategy, and replay scores layers that are known before a step: "
            f"{expected}. 'evaluate.py calibrate' goes through a list of settings of any strategies."
        )
    if cast(Any, found.propose).__func__ is cast(Any, ScheduledStrategy.propose).__func__:
        found.propose(cast(Any, None), 0, 0)  # says what to write
    return found


def check_tuning(
    strategies: Sequence[str],
    *,
    max_loss: float | None,
    speedup: float | None,
    metric: str,
    computed: Collection[str],
    max_new_tokens: int,
    examples: Sequence[str],
    first: Sequence[SkipStrategy] = (),
    trials: int = 1,
) -> None:
    """Refuse a tuning that could not end well.

    Args:
        strategies: Names of the classes whose settings are searched.
        max_loss: See `Goal`.
        speedup: See `Goal`.
        metric: Of a whole split.
        computed: Names of the metrics that DecodeModule computes.
        max_new_tokens: The most new tokens.
        examples: Ids of the validation examples.
        first: Settings that are tried first.
        trials: Settings that are tried.

    Raises:
        UserError: In the words of the options.
    """
    Goal(max_loss, speedup)
    scheduled_classes(strategies)
    for setting in first:
        if not isinstance(setting, ScheduledStrategy):
            raise UserError(f"first: {setting!r} has no layers that are known before a step, and replay scores those.")
    if len(first) > trials:
        raise UserError(f"first lists {len(first)} settings and trials={trials}: give as many trials, or more.")
    if metric not in CORPUS_METRICS:
        raise UserError(f"metric={metric}; expected one of {', '.join(CORPUS_METRICS)}.")
    check_computed(metric, CORPUS_METRICS[metric], computed)
    if max_new_tokens < 2:
        raise UserError(f"model.max_new_tokens={max_new_tokens}: there is no decode step to skip layers in; give more.")
    check_ids(examples, "validation")


def tuning_reports(
    runs: StrategyRuns,
    classes: Sequence[type[ScheduledStrategy]],
    goal: Goal,
    *,
    first: Sequence[ScheduledStrategy],
    metric: str,
    trials: int,
    examples: int,
    decodes: int,
    folder: Path,
    run: dict[str, Any],
    console: Console,
) -> Iterator[TuningReport]:
    """Decode at full depth, search by score, then decode settings of the frontier until one is chosen.

    Args:
        runs: Decodes the validation split.
        classes: Whose settings are searched.
        goal: What is looked for.
        first: Settings that are tried first.
        metric: The quality.
        trials: Settings that are tried.
        examples: How many of the texts that full depth decodes are scored, at most.
        decodes: The most settings to decode.
        folder: Holds scores.jsonl and predictions/.
        run: Provenance.
        console: Where to say what is done.

    Yields:
        A report after the search and after each setting that was decoded.

    Raises:
        UserError: Full depth's texts have no quality to keep, or no decode step.
    """
    trainer = runs.trainer
    console.print(f"Reference: {FullDepth()!r}", highlight=False)
    full = runs.result(FullDepth(), prediction_file(folder, FullDepth()))
    if not full.scores[metric] > 0:
        raise UserError(
            f"Full depth has a {metric} of {full.scores[metric]:g}: there is no quality to keep a share of."
        )
    report = None
    if trainer.is_global_zero:
        with Progress(console=console, disable=console.quiet) as progress:
            report = _searched(runs, full, classes, first, goal, metric, trials, examples, folder, run, progress)
    report = cast(TuningReport, trainer.strategy.broadcast(report))
    yield report
    while len(report.decoded) < decodes:
        place = goal.next_to_decode(report.verdicts) if trainer.is_global_zero else None
        place = trainer.strategy.broadcast(place)  # all processes decode the same setting
        if place is None:
            return
        strategy = report.frontier[place].strategy
        most = min(decodes, len(report.frontier))
        console.print(f"Setting {len(report.decoded) + 1} of at most {most}: {strategy!r}", highlight=False)
        result = runs.result(strategy, prediction_file(folder, strategy))
        report = replace(report, decoded={**report.decoded, place: result})
        yield report


def _searched(
    runs: StrategyRuns,
    full: StrategyResult,
    classes: Sequence[type[ScheduledStrategy]],
    first: Sequence[ScheduledStrategy],
    goal: Goal,
    metric: str,
    trials: int,
    examples: int,
    folder: Path,
    run: dict[str, Any],
    progress: Progress,
) -> TuningReport:
    """Search, and report what was found before any of it is decoded."""
    model, datamodule = runs.model, runs.datamodule
    net = model.model.to(runs.trainer.strategy.root_device)
    num_layers, max_steps = decoder_parts(net).num_layers, model.max_new_tokens
    taken = [sum(record["decode_steps"] > step for record in full.examples) for step in range(max_steps - 1)]
    batches = _own_texts(model, datamodule, full, examples)
    file = ScoreFile(folder / "scores.jsonl")

    @cache
    def replay_score() -> ReplayScore:
        return ReplayScore(net, batches)

    def score(strategy: ScheduledStrategy, schedule: Tensor) -> float:
        known = file.get(schedule)
        if known is None:
            known = replay_score()(schedule)
            file.add(schedule, strategy.config(), known)
        return known

    def cost(schedule: Tensor) -> tuple[float, float]:
        layers = [step.nonzero().flatten().tolist() for step in schedule[:-1]]
        run_layers = sum(texts * len(each) for texts, each in zip(taken, layers, strict=True))
        return run_layers / sum(taken), ideal_speedup(net, layers, taken)

    settings = search(
        classes,
        num_layers=num_layers,
        max_steps=max_steps,
        cost=cost,
        score=score,
        least_ideal_speedup=goal.least_ideal_speedup,
        trials=progress.track(range(trials), description="searching"),
        seed=torch.initial_seed() % 2**32,
        first=first,
    )
    whole = torch.ones(max_steps, num_layers, dtype=torch.bool)
    return TuningReport(
        goal=goal,
        metric=metric,
        reference=full,
        reference_score=score(FullDepth(), whole),
        settings=settings,
        frontier=settings_on_the_frontier(settings),
        decoded={},
        scored_texts=sum(len(batch["input_ids"]) for batch in batches),
        run=run,
    )


def _own_texts(
    model: DecodeModule, datamodule: GenerationDataModule, full: StrategyResult, examples: int
) -> list[dict[str, Tensor]]:
    """Return batches of prompts with the texts that full depth decoded."""
    datamodule.connect_to(model)
    texts = {record["id"]: record["token_ids"] for record in full.examples}
    batches = [batch["pairs"] for batch in sample_batches(datamodule, "validation", examples, texts)]
    if not any(decode_steps(batch["target_mask"]).any() for batch in batches):
        raise UserError(
            "None of full depth's texts that are to be scored has two tokens or more: there is no decode step to skip "
            "layers in."
        )
    return batches


def settings_on_the_frontier(settings: Sequence[Setting]) -> list[Setting]:
    """Return the settings that skip layers and that no other one beats in ideal speed-up and score, slowest first."""
    points = {
        (-setting.ideal_speedup, -setting.score): setting
        for setting in reversed(settings)  # of equal ones the first stays
        if setting.score is not None and math.isfinite(setting.score) and setting.ideal_speedup > 1
    }
    return [points[point] for point in reversed(frontier(list(points)))]
