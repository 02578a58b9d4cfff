"""Write docs/results.md and its pictures from the JSON files in docs/results, so that no figure is typed by hand.

    make results             trains nothing; decodes and times what is not there yet, then runs
    python -m docs.results   which first takes over what runs/results holds

A cell that was not measured is a dash.
"""

import json
import math
from collections.abc import Mapping
from typing import Any

from docs import results_data
from docs.results_data import SETS, Cell, cells, collect, measured_by, number, published, read, short, times
from docs.results_figure import Point, results_figure
from docs.results_text import GOALS, INTRODUCTION, PUBLISHED, READING, TUNED
from hsdlab.models.embedded import EMBEDDED_ADAPTERS
from hsdlab.records.files import replace_figure
from hsdlab.reporting.markdown import markdown_table
from hsdlab.reporting.tables import METRIC_LABELS

PAGE = results_data.ROOT / "docs/results.md"
MODELS = {"plain": "trained plainly", "skip_aware": "trained to skip"}
METRICS = ("rouge1", "rouge2", "rougeL", "bleu1", "bleu4", "bertscore_f1")
GOAL_METRICS = ("rougeL", "bleu4", "bertscore_f1")
DASH = "–"


def _commit(measured: Mapping[str, Any]) -> str:
    return (measured["commit"] or "outside git")[:10] + (" with uncommitted changes" if measured["dirty"] else "")


def estimate(figure: Mapping[str, float | None] | None, digits: int, unit: str = "") -> str:
    """Return "value [low, high]"."""
    value, low, high = (number((figure or {}).get(name)) for name in ("value", "low", "high"))
    if math.isnan(value):
        return DASH
    interval = "" if math.isnan(low) else f" [{low:.{digits}f}, {high:.{digits}f}]"
    return f"{value:.{digits}f}{unit}{interval}"


def quality_table(found: Mapping[str, Cell], timed: Mapping[str, dict[str, Any]] | None) -> str:
    """Return a row for each strategy: layers, each metric with its share of full depth, and time if it is given."""
    if not found:
        return "*Not measured yet.*"
    header = ["Strategy", "Avg. layers", "Tokens", *(METRIC_LABELS[metric] for metric in METRICS)]
    header += [] if timed is None else ["ms per step"]
    rows = []
    for cell in found.values():
        row = [f"`{cell.name}`", f"{cell.layers:.1f}", f"{cell.figures['output_tokens']['value']:.1f}"]
        for metric in METRICS:
            value = estimate(cell.figures["quality"].get(metric), 3)
            share = estimate(cell.figures["percent_of_baseline"].get(metric), 1, " %")
            row.append(value if cell.name == "FullDepth()" else f"{value}<br>{share}")
        if timed is not None:
            row.append(step_time(timed.get(cell.name)))
        rows.append(row)
    return markdown_table(header, rows)


def step_time(side: Mapping[str, Any] | None) -> str:
    """Return "milliseconds [at layers]", and the speed-up over full depth."""
    if side is None:
        return DASH
    step, speed_up = side["decode_step_ms"]["median"], side["speed_up"]["median"]
    return f"{step:.1f} [{side['average_layers']:.1f}]<br>{speed_up:.2f}×"


def goals(data: str) -> list[list[str]]:
    """Return a row for each goal: the setting that comes nearest to it, and how near."""
    plain, aware, timed = cells(f"{data}_plain_greedy"), cells(f"{data}_skip_aware_greedy"), times(data)
    if "FullDepth()" not in plain or "FullDepth()" not in aware:
        return []
    full = plain["FullDepth()"]

    def shares(cell: Cell) -> list[float]:
        return [100 * cell.quality(metric) / full.quality(metric) for metric in GOAL_METRICS]

    def row(goal: str, cell: Cell, needed: float, faster: float | None) -> list[str]:
        found = shares(cell)
        time = "" if faster is None else DASH
        if faster is not None and cell.name in timed:
            spread = timed[cell.name]["speed_up"]
            time = f"{spread['median']:.2f}× [{spread['low']:.2f}, {spread['high']:.2f}] of {faster:.1f}×"
        reached = "yes" if min(found) >= needed else f"no, {needed - min(found):.1f} short"
        depth = f"{cell.layers:.1f} ({cell.percent_of_layers:.0f} %)"
        return [SETS[data], goal, f"`{cell.name}`", depth, *(f"{share:.1f} %" for share in found), reached, time]

    rows = []
    for goal, at_most, needed, faster in (
        ("≥ 98 % at ≤ 50 % of the layers", 50.0, 98.0, 1.6),
        ("≥ 95 % at ≤ 35 % of the layers", 35.0, 95.0, 2.0),
    ):
        candidates = [cell for cell in aware.values() if cell.percent_of_layers <= at_most]
        if candidates:
            rows.append(row(goal, max(candidates, key=lambda cell: min(shares(cell))), needed, faster))
    rows.append(row("≥ 99.5 % at full depth", aware["FullDepth()"], 99.5, None))
    return rows


def tuned(data: str) -> str:
    """Return what the tuner found on a set's validation split, nothing where it was not run."""
    tuning = read(f"{data}_tune")
    if tuning is None:
        return ""
    metric, reference = METRIC_LABELS[tuning["metric"]], tuning["reference"]
    full_layers = reference["cost"]["average_layers"]
    rows = [["`FullDepth()`", f"{reference['nats_per_token']:.3f}", "1.00×", f"{full_layers:.1f}", "", ""]]
    for setting in tuning["frontier"]:
        name = f"`{short(setting['name'])}`"
        score, faster = f"{setting['nats_per_token']:.3f}", f"{setting['ideal_speed_up']:.2f}×"
        decoded, verdict = setting["decoded"], DASH
        layers, share = f"({setting['average_layers']:.1f})", DASH
        if decoded is not None:
            layers = f"{decoded['cost']['average_layers']:.1f}"
            share = estimate(decoded["percent_of_full_depth"], 1, " %")
            chosen = setting["name"] == tuning["chosen"]["name"]
            verdict = "chosen" if chosen else "met" if setting["verdict"] else "missed"
        rows.append([name, score, faster, layers, share, verdict])
    header = ["Setting", "Nats per token", "Ideal speed-up", "Avg. layers", f"{metric}, share of full depth", "Goal"]
    kept = 100 * (1 - tuning["goal"]["max_loss"])
    text = TUNED.format(
        data=data,
        examples=tuning["examples"],
        tried=len(tuning["settings"]),
        decoded=sum(setting["decoded"] is not None for setting in tuning["frontier"]),
        kept=f"{kept:g} % of {metric}",
    )
    return text.strip() + "\n\n" + markdown_table(header, rows)


def published_table(data: str) -> str:
    """Return the published shares beside ours, for the settings that both have."""
    ours = [cells(f"{data}_{model}_greedy") for model in MODELS]
    rows = []
    for name, models in published(data).items():
        row = [f"`{name}`"]
        for figures in models.values():
            row.append(" · ".join(f"{figures[key]:.0f}" for key in ("layers", "rougeL", "bleu1", "bertscore")))
        for found in ours:
            cell = found.get(name)
            shares = () if cell is None else (cell.share(metric) for metric in ("rougeL", "bleu1", "bertscore_f1"))
            row.append(DASH if cell is None else " · ".join(f"{n:.0f}" for n in (cell.percent_of_layers, *shares)))
        rows.append(row)
    header = ["Strategy", "GPT-2, published", "Phi-2, published", *(f"Ours, {how}" for how in MODELS.values())]
    return markdown_table(header, rows)


def trained(data: str) -> str:
    """Return how a set's two models were trained, and how their validation losses fell."""
    lines = []
    for model, how in MODELS.items():
        name = f"smollm2-135m-{data}{'-skip-aware' if model == 'skip_aware' else ''}".replace("_", "-")
        file = EMBEDDED_ADAPTERS[f"embedded:{name}"] / "training.json"
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


def provenance(name: str) -> str:
    """Return where and when the runs of a set were made."""
    lines = []
    for file in sorted(results_data.RESULTS.glob(f"{name}_*.json")):
        content = json.loads(file.read_text(encoding="utf-8"))
        run = content["run"]
        made = [row.get("measured") or measured_by(run) for row in content.get("strategies", [{}])]
        sessions = sorted({f"{each['date_utc'][:10]}, commit {_commit(each)}" for each in made})
        lines.append(
            f"- [{file.name}](results/{file.name}): {'; '.join(sessions)}; seed {run['seed']}, "
            f"{run['machine']['cpu']}, {run['machine']['cores']} cores, torch {run['versions']['torch']}, "
            f"transformers {run['versions']['transformers']}."
        )
    return "\n".join(lines)


def reading() -> str:
    """Return the two paragraphs on what reproduces, with their figures; nothing before they were measured."""
    plain, aware = (cells(f"e2e_{model}_greedy") for model in MODELS)
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
        "calm_share": plain[calm].share("rougeL"),
        "plain_share": plain[mild].share("rougeL"),
        "aware_share": aware[mild].share("rougeL"),
        "aware_half": aware[half].share("rougeL"),
    }
    return READING.format(**{name: f"{share:.0f} %" for name, share in shares.items()})


def points(data: str, by_time: bool = False) -> dict[str, list[Point]]:
    """Return what the picture shows of each model: a cost, and ROUGE-L as percentage of the plain full depth.

    Args:
        data: Name of the set.
        by_time: Whether the cost is milliseconds per decode step; by default it is the average layers.
    """
    full = cells(f"{data}_plain_greedy").get("FullDepth()")
    if full is None:
        return {}
    found: dict[str, list[Point]] = {}
    for model, how in MODELS.items():
        steps_ms = {name: side["decode_step_ms"]["median"] for name, side in times(data, model).items()}
        found[how] = [
            Point(
                steps_ms.get(cell.name, math.nan) if by_time else cell.layers,
                100 * cell.quality("rougeL") / full.quality("rougeL"),
                cell.name,
            )
            for cell in cells(f"{data}_{model}_greedy").values()
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
            found, timed = cells(f"{data}_{model}_greedy"), times(data, model)
            parts += [f"### {title}, table {letter}: {how}", quality_table(found, timed)]
        for model, how in MODELS.items():
            parts += [f"### {title}, 4 beams: {how}", quality_table(cells(f"{data}_{model}_beam4"), None)]
        if choice := tuned(data):
            parts += [f"### {title}: the tuner", choice]
        parts += [f"### {title}: beside the paper", PUBLISHED.strip(), published_table(data), provenance(data)]
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
