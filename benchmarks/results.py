"""Write docs/results.md and its pictures from the JSON files in docs/results, so that no figure is typed by hand.

    make results             trains nothing; decodes and times what is not there yet, then runs
    python -m benchmarks.results   which first takes over what runs/results holds

A cell that was not measured is a dash.
"""

import json
import math
from collections.abc import Mapping

from benchmarks import results_data
from benchmarks.results_data import SETS, collect, published, read, rows, runs, short, times
from benchmarks.results_figure import Point, results_figure
from benchmarks.results_text import GOALS, INTRODUCTION, PUBLISHED, READING, TUNED
from hsdlab.records.bench import BenchSide
from hsdlab.records.bootstrap import Estimate
from hsdlab.records.comparison import ComparisonRow, Measured
from hsdlab.records.labels import METRIC_LABELS
from hsdlab.records.provenance import RunInfo
from hsdlab.records.tuning import TuningResult
from hsdlab.reporting.figures import replace_figure
from hsdlab.reporting.markdown import markdown_table
from hsdlab.reporting.tables import MISSING, estimate, interval, number
from hsdlab.reporting.tuning import CHOSEN, MET, MISSED

PAGE = results_data.ROOT / "docs/results.md"
MODELS = {"plain": "trained plainly", "skip_aware": "trained to skip"}
METRICS = ("rouge1", "rouge2", "rougeL", "bleu1", "bleu4", "bertscore_f1")
GOAL_METRICS = ("rougeL", "bleu4", "bertscore_f1")
FULL_DEPTH = "FullDepth()"


def _session(measured: Measured) -> str:
    commit = (measured.commit or "outside git")[:10] + (" with uncommitted changes" if measured.dirty else "")
    return f"{measured.date_utc[:10]}, commit {commit}"


def share(figure: Estimate) -> str:
    """Return "percentage % [low, high]"."""
    ends = interval(figure, 1)
    return f"{number(figure.value, 1)} %" + (f" [{ends}]" if ends else "")


def quality_table(found: Mapping[str, ComparisonRow], timed: Mapping[str, BenchSide] | None) -> str:
    """Return a row for each strategy: layers, each metric with its share of full depth, and time if it is given."""
    if not found:
        return "*Not measured yet.*"
    header = ["Strategy", "Average depth", "Tokens", *(METRIC_LABELS[metric] for metric in METRICS)]
    header += [] if timed is None else ["ms per decode step"]
    lines = []
    for name, row in found.items():
        line = [f"`{name}`", number(row.average_layers, 1), number(row.output_tokens.value, 1)]
        for metric in METRICS:
            value = estimate(row.quality[metric], 3)
            line.append(value if name == FULL_DEPTH else f"{value}<br>{share(row.percent_of_baseline[metric])}")
        if timed is not None:
            line.append(step_time(timed.get(name)))
        lines.append(line)
    return markdown_table(header, lines)


def step_time(side: BenchSide | None) -> str:
    """Return "milliseconds [at layers]", and the speed-up over full depth."""
    if side is None:
        return MISSING
    return f"{side.decode_step_ms.median:.1f} [{side.average_layers:.1f}]<br>{side.speed_up.median:.2f}×"


def goals(data: str) -> list[list[str]]:
    """Return a line for each goal: the setting that comes nearest to it, and how near."""
    plain, aware, timed = rows(f"{data}_plain_greedy"), rows(f"{data}_skip_aware_greedy"), times(data)
    if FULL_DEPTH not in plain or FULL_DEPTH not in aware:
        return []
    full = plain[FULL_DEPTH]

    def shares(name: str) -> list[float]:
        return [100 * aware[name].quality[metric].value / full.quality[metric].value for metric in GOAL_METRICS]

    def line(goal: str, name: str, needed: float, faster: float | None) -> list[str]:
        found, row = shares(name), aware[name]
        time = "" if faster is None else MISSING
        if faster is not None and name in timed:
            spread = timed[name].speed_up
            time = f"{spread.median:.2f}× [{spread.low:.2f}, {spread.high:.2f}] of {faster:.1f}×"
        reached = "yes" if min(found) >= needed else f"no, {needed - min(found):.1f} short"
        depth = f"{row.average_layers:.1f} ({row.percent_of_layers:.0f} %)"
        return [SETS[data], goal, f"`{name}`", depth, *(f"{each:.1f} %" for each in found), reached, time]

    lines = []
    for goal, at_most, needed, faster in (
        ("≥ 98 % at ≤ 50 % of the layers", 50.0, 98.0, 1.6),
        ("≥ 95 % at ≤ 35 % of the layers", 35.0, 95.0, 2.0),
    ):
        candidates = [name for name, row in aware.items() if row.percent_of_layers <= at_most]
        if candidates:
            lines.append(line(goal, max(candidates, key=lambda name: min(shares(name))), needed, faster))
    lines.append(line("≥ 99.5 % at full depth", FULL_DEPTH, 99.5, None))
    return lines


def tuned(data: str) -> str:
    """Return what the tuner found on a set's validation split, nothing where it was not run."""
    tuning = read(f"{data}_tune", TuningResult)
    if tuning is None:
        return ""
    full, metric = tuning.comparison.baseline, METRIC_LABELS[tuning.metric]
    score = f"{tuning.reference_nats_per_token:.3f}"
    lines = [[f"`{FULL_DEPTH}`", score, "1.00×", number(full.average_layers, 1), "", ""]]
    for place, (setting, met) in enumerate(zip(tuning.frontier_settings, tuning.verdicts, strict=True)):
        row = tuning.rows.get(place)
        if row is None:
            decoded = [f"({setting.average_layers:.1f})", MISSING, MISSING]
        else:
            goal = CHOSEN if place == tuning.chosen else MET if met else MISSED
            decoded = [number(row.average_layers, 1), share(row.percent_of_baseline[tuning.metric]), goal]
        score = number(setting.nats_per_token, 3)
        lines.append([f"`{short(setting.name)}`", score, f"{setting.ideal_speed_up:.2f}×", *decoded])
    header = ["Setting", "Nats per token", "Ideal speed-up", "Average depth", f"{metric}, share of full depth", "Goal"]
    text = TUNED.format(
        data=data,
        examples=full.examples,
        tried=len(tuning.settings),
        decoded=len(tuning.decoded),
        kept=f"{100 * (1 - tuning.goal.max_loss):g} % of {metric}",
    )
    return text.strip() + "\n\n" + markdown_table(header, lines)


def published_table(data: str) -> str:
    """Return the published shares beside ours, for the settings that both have."""
    ours = [rows(f"{data}_{model}_greedy") for model in MODELS]
    lines = []
    for name, models in published(data).items():
        line = [f"`{name}`"]
        for figures in models.values():
            line.append(" · ".join(f"{figures[key]:.0f}" for key in ("layers", "rougeL", "bleu1", "bertscore")))
        for row in (found.get(name) for found in ours):
            if row is None:
                line.append(MISSING)
            else:
                shares = (row.percent_of_baseline[metric].value for metric in ("rougeL", "bleu1", "bertscore_f1"))
                line.append(" · ".join(f"{each:.0f}" for each in (row.percent_of_layers, *shares)))
        lines.append(line)
    header = ["Strategy", "GPT-2, published", "Phi-2, published", *(f"Ours, {how}" for how in MODELS.values())]
    return markdown_table(header, lines)


def trained(data: str, models: Mapping[str, str] = MODELS) -> str:
    """Return how a set's models were trained, and how their validation losses fell.

    Args:
        data: Name of the set.
        models: What each model is called in the names of files, and how it was trained.
    """
    lines = []
    for model, how in models.items():
        name = f"smollm2-135m-{data}{'' if model == 'plain' else f'-{model}'}".replace("_", "-")
        file = results_data.ADAPTERS / name.removeprefix("smollm2-135m-").replace("-", "_") / "training.json"
        if not file.is_file():
            continue
        training = json.loads(file.read_text(encoding="utf-8"))
        config = training["config"]
        data_options, rate = config["data"]["init_args"], config["model"]["learning_rate"]
        pairs = data_options["batch_size"] * int(config["trainer"]["devices"])
        steps = f"{config['trainer']['max_steps']} steps of {pairs} pairs"
        texts = ", the teacher's texts" if data_options.get("targets") else ""
        lines.append(f"- {how.capitalize()}: `embedded:{name}`, {steps}, learning rate at its peak {rate:g}.")
        for loss, label in (("val/loss", f"full depth{texts}"), ("val/skip_loss", f"under drawn strategies{texts}")):
            if loss in training["losses"]:
                points = ", ".join(f"{value:.3f} ({step})" for step, value in training["losses"][loss])
                lines.append(f"  - Validation loss, {label}, nats (steps): {points}.")
    return "\n".join(lines)


def provenance(found: Mapping[str, tuple[RunInfo, set[Measured]]]) -> str:
    """Return where and when runs were made, a line for each file."""
    lines = []
    for name, (run, measured) in found.items():
        sessions = sorted({_session(each) for each in measured})
        lines.append(
            f"- [{name}](results/{name}): {'; '.join(sessions)}; seed {run.seed}, {run.machine.cpu}, "
            f"{run.machine.cores} cores, torch {run.versions['torch']}, transformers {run.versions['transformers']}."
        )
    return "\n".join(lines)


def reading() -> str:
    """Return the two paragraphs on what reproduces, with their figures; nothing before they were measured."""
    plain, aware = (rows(f"e2e_{model}_greedy") for model in MODELS)
    mild, half, calm = "HSD(1, 0, 18)", "HSD(2, 0, 8)", "CALM(depth, 0.02)"
    if not {mild, calm} <= plain.keys() or not {mild, half} <= aware.keys():
        return ""
    paper = {setting: published("e2e")[setting]["GPT-2"] for setting in (mild, half, calm)}
    shares = {
        "published_layers": paper[mild]["layers"],
        "published_share": paper[mild]["rougeL"],
        "published_half": paper[half]["rougeL"],
        "published_calm_layers": paper[calm]["layers"],
        "published_calm_share": paper[calm]["rougeL"],
        "calm_layers": plain[calm].percent_of_layers,
        "calm_share": plain[calm].percent_of_baseline["rougeL"].value,
        "plain_share": plain[mild].percent_of_baseline["rougeL"].value,
        "aware_share": aware[mild].percent_of_baseline["rougeL"].value,
        "aware_half": aware[half].percent_of_baseline["rougeL"].value,
    }
    return READING.format(**{name: f"{share:.0f} %" for name, share in shares.items()})


def points(data: str, by_time: bool = False) -> dict[str, list[Point]]:
    """Return what the picture shows of each model: a cost, and ROUGE-L as percentage of the plain full depth.

    Args:
        data: Name of the set.
        by_time: Whether the cost is milliseconds per decode step; by default it is the average layers.
    """
    full = rows(f"{data}_plain_greedy").get(FULL_DEPTH)
    if full is None:
        return {}
    found: dict[str, list[Point]] = {}
    for model, how in MODELS.items():
        steps_ms = {name: side.decode_step_ms.median for name, side in times(data, model).items()}
        found[how] = [
            Point(
                steps_ms.get(name, math.nan) if by_time else row.average_layers,
                100 * row.quality["rougeL"].value / full.quality["rougeL"].value,
                name,
            )
            for name, row in rows(f"{data}_{model}_greedy").items()
        ]
    return found


def page() -> str:
    """Return docs/results.md."""
    header = [
        "Set",
        "Goal",
        "Setting",
        "Layers",
        *(METRIC_LABELS[metric] for metric in GOAL_METRICS),
        "Reached",
        "Faster",
    ]
    reached = [row for data in SETS for row in goals(data)]
    parts = [INTRODUCTION.strip()]
    if reached:
        parts += [
            "## How far it came",
            GOALS.strip(),
            markdown_table(header, reached),
        ]
    for data, title in SETS.items():
        parts += [f"## {title}", trained(data)]
        if (results_data.RESULTS / f"{data}.png").is_file():
            parts.append(f"![{title}: ROUGE-L against layers and against time](results/{data}.png)")
        for letter, (model, how) in zip("AB", MODELS.items(), strict=True):
            found, timed = rows(f"{data}_{model}_greedy"), times(data, model)
            parts += [f"### {title}, table {letter}: {how}", quality_table(found, timed)]
        for model, how in MODELS.items():
            parts += [f"### {title}, 4 beams: {how}", quality_table(rows(f"{data}_{model}_beam4"), None)]
        if choice := tuned(data):
            parts += [f"### {title}: the tuner", choice]
        parts += [f"### {title}: beside the paper", PUBLISHED.strip(), published_table(data), provenance(runs(data))]
    if text := reading():
        parts += ["## What reproduces, and what does not", text.strip()]
    return "\n\n".join(part for part in parts if part) + "\n"


def draw() -> None:
    """Draw the picture of each set that was measured."""
    for data, title in SETS.items():
        if by_layers := points(data):
            figure = results_figure(title, by_layers, points(data, by_time=True))
            replace_figure(results_data.RESULTS / f"{data}.png", figure, dots_per_inch=150)


def main() -> None:
    """Take over new results, draw, and write the page."""
    collect()
    draw()
    PAGE.write_text(page(), encoding="utf-8")
    files = len(list(results_data.RESULTS.glob("*.json")))
    print(f"{PAGE.relative_to(results_data.ROOT)}: from {files} files in docs/results")


if __name__ == "__main__":
    main()
