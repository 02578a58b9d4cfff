"""Write docs/early_exit.md and its pictures from the JSON files in docs/results, so that no figure is typed by hand.

    make results                      decodes and times what is not there yet, then runs
    python -m benchmarks.early_exit   which first takes over what runs/results holds

What was not measured is a dash, or "Not measured yet."
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from matplotlib.figure import Figure

from benchmarks import results_data
from benchmarks.early_exit_data import FULL_DEPTH, KINDS, SCHEDULES, collect, named, rows, thresholds, times
from benchmarks.early_exit_figure import early_exit_figure
from benchmarks.early_exit_text import (
    CALIBRATION,
    FINDINGS,
    FINDINGS_OF,
    GOALS,
    INTRODUCTION,
    READING,
    RELIABILITY,
    SEEDS,
    TOGETHER,
    TOKENS,
    TRAINING,
    WHEN,
)
from benchmarks.results import GOAL_METRICS, provenance, trained
from benchmarks.results_data import SETS, runs
from benchmarks.results_figure import Point
from hsdlab.records.bench import BenchSide
from hsdlab.records.comparison import Comparison, ComparisonRow
from hsdlab.records.labels import METRIC_LABELS
from hsdlab.reporting import comparison
from hsdlab.reporting import early_exit as tokens
from hsdlab.reporting.figures import replace_figure
from hsdlab.reporting.markdown import markdown_table
from hsdlab.reporting.tables import MISSING, estimate, number
from hsdlab.runs.report import results_of

PAGE = results_data.ROOT / "docs/early_exit.md"
PLAIN = "FullDepth(), trained plainly"
NOT_YET = "*Not measured yet.*"
BATCH_SIZES = (1, 8)
SEEDED = ("exits_greedy", "exits_seed1_greedy", "exits_seed2_greedy")
TOGETHER_MODEL = "exits_and_schedules"
EQUAL_QUALITY = 0.5
"""Percentage points of ROUGE-L within which two settings count as equally good."""
BEST_CALM = {"e2e": (98.0, 50.0), "common_gen": (95.0, 60.0)}
"""The goals of CALM: least percentage of the plain model's quality, largest percentage of the layers."""
TOKEN_PICTURES = {
    "exit_layers": "executed layers of the tokens, by strategy, by kind of token and by part of the text",
    "exit_texts": "texts with each token coloured by its executed layers",
}
QUALITY_LABELS = [METRIC_LABELS[metric] for metric in GOAL_METRICS]


class SetResults:
    """What was measured of one data set.

    Args:
        data: Name of the set.
        model: The model with exits: "exits" or "exits_and_schedules".
    """

    def __init__(self, data: str, model: str = "exits") -> None:
        """Read the records that are there."""
        self.data = data
        self.model = model
        self.plain = rows(f"{data}_plain_greedy").get(FULL_DEPTH)
        self.exits = rows(f"{data}_{model}_greedy")
        skip = rows(f"{data}_skip_aware_greedy")
        self.schedules = {name: skip[name] for name in SCHEDULES if name in skip}
        self.times = times(data, model)

    def shares(self, row: ComparisonRow) -> list[float]:
        """Return each metric of the goals as a percentage of the plain model's at full depth; NaN where unknown."""
        if self.plain is None:
            return [math.nan] * len(GOAL_METRICS)
        return [100 * row.quality[each].value / self.plain.quality[each].value for each in GOAL_METRICS]

    def side(self, batch_size: int, name: str) -> BenchSide | None:
        """Return what the bench measured of a strategy, None where it was not timed."""
        return self.times.get(batch_size, {}).get(name)

    def speed_up(self, batch_size: int, name: str) -> float:
        """Return the median speed-up of a strategy over full depth, NaN where it was not timed."""
        side = self.side(batch_size, name)
        return math.nan if side is None else side.speed_up.median

    def nearest(self, class_name: str, needed: float, at_most: float) -> str | None:
        """Return the strategy of a class that comes nearest to a goal, the fastest of those that reach it.

        Args:
            class_name: Such as "CALM".
            needed: Percentage of the plain model's quality.
            at_most: Percentage of the layers.
        """

        def short_of(name: str) -> tuple[float, float, float]:
            row = self.exits[name]
            lacking = max(needed - min(self.shares(row)), row.percent_of_layers - at_most, 0.0)
            faster = self.speed_up(1, name)
            return lacking, -faster if math.isfinite(faster) else 0.0, row.percent_of_layers

        names = [name for name, row in self.exits.items() if row.class_name == class_name]
        return min(names, key=short_of, default=None) if self.plain is not None else None


def strategies_table(found: SetResults) -> str:
    """Return a row for each strategy: model, layers, quality, FLOPs and times."""
    lines = [_plain_generate(found)] if found.times else []
    lines += [] if found.plain is None else [_line(found, FULL_DEPTH, "plain", found.plain)]
    lines += [_line(found, name, "exits", row) for name, row in found.exits.items()]
    lines += [_line(found, name, "skip", row) for name, row in found.schedules.items()]
    return _strategies(lines) if found.exits else NOT_YET


def together_table(found: SetResults) -> str:
    """Return a row for each strategy on the model that learned exits and schedules together."""
    first = [_plain_generate(found)] if found.times else []
    return _strategies(first + [_line(found, name, "both", row) for name, row in found.exits.items()])


def _strategies(lines: list[list[str]]) -> str:
    timed = [f"ms per step, batch {size}" for size in BATCH_SIZES]
    return markdown_table(["Strategy", "Model", "Layers", *QUALITY_LABELS, "GFLOPs per token", *timed], lines)


def _plain_generate(found: SetResults) -> list[str]:
    """Return the line of transformers' own `generate`, which has times only."""
    unknown = [MISSING] * (3 + len(QUALITY_LABELS))
    return ["plain `generate`", *unknown, *(_step_time(found.side(size, "plain generate")) for size in BATCH_SIZES)]


def _line(found: SetResults, name: str, model: str, row: ComparisonRow) -> list[str]:
    quality = [
        f"{estimate(row.quality[metric], 3)}<br>{number(share, 1)} %"
        for metric, share in zip(GOAL_METRICS, found.shares(row), strict=True)
    ]
    flops = row.figure("flops_per_token") / 1e9
    timed = [_step_time(None if row.is_oracle else found.side(size, name)) for size in BATCH_SIZES]
    return [f"`{name}`", model, number(row.average_layers, 1), *quality, number(flops or math.nan, 3), *timed]


def _step_time(side: BenchSide | None) -> str:
    """Return "milliseconds [layers]", and the speed-up with its quartiles."""
    if side is None:
        return MISSING
    layers = "" if side.average_layers is None else f" [{number(side.average_layers, 1)}]"
    return f"{side.decode_step_ms.median:.1f}{layers}<br>{_faster(side)}"


def _faster(side: BenchSide | None) -> str:
    if side is None:
        return MISSING
    return f"{side.speed_up.median:.2f}× [{side.speed_up.low:.2f}, {side.speed_up.high:.2f}]"


def _verdict(short_of: float, unit: str) -> str:
    """Return "reached", by how much a goal was missed, or that it was not measured."""
    if math.isnan(short_of):
        return "not measured yet"
    return "reached" if short_of < 1e-9 else f"no, {short_of:.{2 if unit == '×' else 1}f}{unit} short"


def goals_table(sets: Mapping[str, SetResults]) -> str:
    """Return a line for each goal: the setting that comes nearest to it, what it reached, how much is missing."""
    e2e, common_gen = sets["e2e"], sets["common_gen"]
    lines = [
        *_quality_and_depth(e2e, "best CALM measure", *BEST_CALM["e2e"], {1: 1.5, 8: 1.2}),
        *_quality_and_depth(common_gen, "best CALM measure", *BEST_CALM["common_gen"], {1: 1.3}),
        _compose(e2e, SetResults("e2e", TOGETHER_MODEL)),
        *(_oracle(found) for found in sets.values()),
        *(_full_depth(found) for found in sets.values()),
    ]
    return markdown_table(["Set", "Goal", "At", "Measured", "Reached"], lines)


def _quality_and_depth(
    found: SetResults, what: str, needed: float, at_most: float, faster: Mapping[int, float]
) -> Iterable[list[str]]:
    """Give the line of the quality at a depth, and one for the speed-up at each batch size."""
    title, name = SETS[found.data], found.nearest("CALM", needed, at_most)
    row = None if name is None else found.exits[name]
    at = MISSING if name is None else f"`{name}`"
    goal = f"{what}: ≥ {needed:g} % of {', '.join(QUALITY_LABELS)} at ≤ {at_most:g} % of the layers"
    if row is None:
        yield [title, goal, MISSING, MISSING, _verdict(math.nan, "")]
    else:
        shares = ", ".join(f"{share:.1f} %" for share in found.shares(row))
        depth = f"{row.average_layers:.1f} layers ({row.percent_of_layers:.0f} %)"
        lacking = [
            f"{missing:.1f} {text}"
            for missing, text in (
                (needed - min(found.shares(row)), "% of the quality"),
                (row.percent_of_layers - at_most, "% of the layers"),
            )
            if missing > 1e-9
        ]
        yield [title, goal, at, f"{shares} at {depth}", f"no, {' and '.join(lacking)} short" if lacking else "reached"]
    for size, times_faster in faster.items():
        side = None if name is None else found.side(size, name)
        short_of = math.nan if side is None else times_faster - side.speed_up.median
        yield [
            title,
            f"its measured speed-up, batch {size}: ≥ {times_faster:g}×",
            at,
            _faster(side),
            _verdict(short_of, "×"),
        ]


def _compose(exits: SetResults, together: SetResults) -> list[str]:
    """Return the line of `Compose`: faster than the fastest CALM and the fastest HSD of at least equal ROUGE-L.

    Each may be on the model that suits it: trained for exits, to skip, or for both together.
    """
    goal = f"`Compose(HSD, CALM)`: faster than either at equal quality (within {EQUAL_QUALITY:g} % of ROUGE-L)"
    title, found = SETS[exits.data], together if together.exits else exits
    timed = [
        name
        for name, row in found.exits.items()
        if row.class_name == "Compose" and math.isfinite(found.speed_up(1, name))
    ]
    compared = [(name, _rivals(found, name, (exits, together))) for name in timed]
    if not compared:
        return [title, goal, MISSING, MISSING, _verdict(math.nan, "")]

    def ahead(pair: tuple[str, dict[str, tuple[float, str, float]]]) -> float:
        return found.speed_up(1, pair[0]) - max((faster for faster, *_ in pair[1].values()), default=0.0)

    name, rivals = max(compared, key=ahead)
    measured = [f"{found.speed_up(1, name):.2f}× at {found.shares(found.exits[name])[0]:.1f} %"]
    for class_name in ("CALM", "HSD"):
        if class_name in rivals:
            faster, best, percent = rivals[class_name]
            measured.append(f"`{best}` {faster:.2f}× at {percent:.1f} %")
        else:
            measured.append(f"no {class_name} of this quality")
    missing = -ahead((name, rivals))
    return [title, goal, f"`{name}`", "; ".join(measured), "reached" if missing < 0 else f"no, {missing:.2f}× short"]


def _rivals(found: SetResults, name: str, among: Iterable[SetResults]) -> dict[str, tuple[float, str, float]]:
    """Return the fastest CALM and the fastest HSD that keep as much of ROUGE-L: class -> (speed-up, name, percent)."""
    least = found.shares(found.exits[name])[0] - EQUAL_QUALITY
    fastest: dict[str, tuple[float, str, float]] = {}
    for results in among:
        for other, row in [*results.exits.items(), *results.schedules.items()]:
            faster, percent = results.speed_up(1, other), results.shares(row)[0]
            if row.class_name in ("CALM", "HSD") and percent >= least and math.isfinite(faster):
                fastest[row.class_name] = max(fastest.get(row.class_name, (0.0, "", 0.0)), (faster, other, percent))
    return fastest


def _oracle(found: SetResults) -> list[str]:
    """Return the line of the oracle's bound."""
    row = next((row for row in found.exits.values() if row.is_oracle), None)
    stated = MISSING if row is None else f"{row.average_layers:.1f} of {row.num_layers} layers"
    return [
        SETS[found.data],
        "bound of exits, stated",
        "`OracleExit()`",
        stated,
        _verdict(math.nan if row is None else 0.0, ""),
    ]


def _full_depth(found: SetResults) -> list[str]:
    """Return the line of the model trained for exits at full depth."""
    row = found.exits.get(FULL_DEPTH)
    shares = [math.nan] if row is None else found.shares(row)
    measured = MISSING if math.isnan(min(shares)) else ", ".join(f"{share:.1f} %" for share in shares)
    goal = "trained for exits, at full depth: ≥ 99 % of the plain model's quality"
    return [SETS[found.data], goal, f"`{FULL_DEPTH}`", measured, _verdict(99.0 - min(shares), " %")]


def seeds_table(found: SetResults) -> str:
    """Return the headline setting on the models of three training seeds, with mean and range."""
    name = found.nearest("CALM", *BEST_CALM[found.data])
    if name is None:
        return NOT_YET
    figures: dict[str, Callable[[ComparisonRow], list[float]]] = {
        "Layers": lambda row: [row.average_layers],
        **{
            f"{label}, %": lambda row, place=place: [found.shares(row)[place]]  # type: ignore[misc]
            for place, label in enumerate(QUALITY_LABELS)
        },
    }
    models = [rows(f"{found.data}_{model}").get(name) for model in SEEDED]
    columns = {label: [math.nan if row is None else of(row)[0] for row in models] for label, of in figures.items()}
    lines = [[str(seed), *(number(column[seed], 1) for column in columns.values())] for seed in range(len(SEEDED))]
    measured = [[value for value in column if math.isfinite(value)] for column in columns.values()]
    lines.append(["mean", *(number(sum(each) / len(each) if each else math.nan, 1) for each in measured)])
    lines.append(["range", *(f"{min(each):.1f} to {max(each):.1f}" if each else MISSING for each in measured)])
    return f"Setting: `{name}`.\n\n" + markdown_table(["Training seed", *columns], lines)


def calibration_table(data: str, model: str = "exits") -> str:
    """Return what `calibrate` chose on the validation split, a line for each measure."""
    lines = []
    for measure, made in thresholds(data, model).items():
        chosen = made.chosen
        start = [
            measure,
            f"{len(made.tests)} of {made.settings}",
            str(made.examples),
            f"{made.loss}, {METRIC_LABELS.get(made.metric, made.metric)}",
            f"{made.tolerance:g}, ε {made.error:g}",
        ]
        if chosen is None:
            lines.append([*start, "none: full depth", MISSING, MISSING, MISSING])
            continue
        figures = [number(chosen.mean_loss, 4), number(chosen.risk_upper_bound, 4), number(chosen.average_layers, 1)]
        lines.append([*start, f"`{named(chosen.name)}`", *figures])
    header = [
        "Measure",
        "Tested",
        "Examples",
        "Loss",
        "Tolerance",
        "Chosen",
        "Mean loss",
        "Bound of the risk",
        "Layers",
    ]
    return markdown_table(header, lines) if lines else NOT_YET


def points(found: SetResults) -> dict[str, list[Point]]:
    """Return the panels of the picture: cost to points, with ROUGE-L as percentage of the plain full depth."""
    if found.plain is None or not found.exits:
        return {}
    every = {PLAIN: found.plain, **found.exits}
    if found.model != TOGETHER_MODEL:  # which runs the schedules itself
        every |= found.schedules
    percent = {name: found.shares(row)[0] for name, row in every.items()}
    layers = [Point(row.average_layers, percent[name], name) for name, row in every.items()]
    panels = {"Average layers per decode step": layers}
    for size in sorted(found.times):
        steps_ms = {name: side.decode_step_ms.median for name, side in found.times[size].items()}
        steps_ms[PLAIN] = steps_ms.get(FULL_DEPTH, math.nan)  # other weights of the same size
        timed = [Point(steps_ms.get(name, math.nan), percent[name], name) for name in every]
        panels[f"Measured ms per decode step, batch size {size}"] = timed
    return panels


def page() -> str:
    """Return docs/early_exit.md."""
    sets = {data: SetResults(data) for data in SETS}
    parts = [INTRODUCTION, FINDINGS, GOALS, goals_table(sets), TRAINING, READING]
    for data, title in SETS.items():
        parts += [f"## {title}", _picture(f"{data}_exits.png", f"{title}: ROUGE-L against layers and against time")]
        parts += [trained(data, {"exits": "trained for exits"}), strategies_table(sets[data]), FINDINGS_OF[data]]
        if data == "e2e":
            parts += [f"### {title}: three training seeds", SEEDS, seeds_table(sets[data])]
        together = SetResults(data, TOGETHER_MODEL)
        if together.exits:
            parts += [f"### {title}: exits and schedules trained together", TOGETHER]
            parts.append(_picture(f"{data}_{TOGETHER_MODEL}.png", f"{title}: ROUGE-L of the model that learned both"))
            parts.append(together_table(together))
            parts.append(calibration_table(data, TOGETHER_MODEL))
        parts += [f"### {title}: thresholds", CALIBRATION, calibration_table(data)]
        pictures = [_picture(f"{data}_{name}.png", f"{title}: {text}") for name, text in TOKEN_PICTURES.items()]
        if any(pictures):
            parts += [f"### {title}: which tokens exit early", TOKENS, *pictures]
        if reliability := _picture(f"{data}_reliability.png", f"{title}: reliability of the confidence by layer"):
            parts += [f"### {title}: reliability of the confidence", RELIABILITY, reliability]
        parts.append(provenance(runs(data, KINDS)))
    parts.append(WHEN)
    return "\n\n".join(part.strip() for part in parts if part.strip()) + "\n"


def _picture(file: str, text: str) -> str:
    """Return the line that shows a picture in docs/results, nothing where there is none."""
    return f"![{text}](results/{file})" if (results_data.RESULTS / file).is_file() else ""


def draw() -> None:
    """Draw the pictures of each set that was measured. Those of single tokens need the run's folder."""
    for data, title in SETS.items():
        found = SetResults(data)
        if panels := points(found):
            _write_picture(f"{data}_exits.png", early_exit_figure(title, panels))
        if panels := points(SetResults(data, TOGETHER_MODEL)):
            figure = early_exit_figure(f"{title}: exits and schedules trained together", panels)
            _write_picture(f"{data}_{TOGETHER_MODEL}.png", figure)
        folder = results_data.RUNS / f"{data}_exits_greedy"
        if found.exits and (folder / "predictions").is_dir():
            drawn = {found.nearest(name, *BEST_CALM[data]) for name in ("CALM", "LearnedExit")}
            every = zip(Comparison.read(folder / comparison.FILE).rows, results_of(folder), strict=True)
            renamed = ((replace(row, name=named(row.name), resolved=None), result) for row, result in every)
            chosen = [(row, result) for row, result in renamed if row.name in drawn]
            if len(chosen) == len(drawn):  # the folder has the rows of the last run only
                _write_picture(f"{data}_exit_layers.png", tokens.early_exit_figure(chosen))
                _write_picture(f"{data}_exit_texts.png", tokens.early_exit_text_figure(chosen))


def _write_picture(name: str, figure: Figure) -> None:
    replace_figure(results_data.RESULTS / name, figure, dots_per_inch=120)


def main() -> None:
    """Take over new results, draw, and write the page."""
    collect()
    draw()
    PAGE.write_text(page(), encoding="utf-8")
    print(f"{PAGE.relative_to(results_data.ROOT)}: written from docs/results")


if __name__ == "__main__":
    main()
