"""Put the demo's own figures into docs/demo.md, so that none is typed by hand.

    hsdlab demo                                                                               (docs/demo.md)
    make demo-train
    python train.py fit --config configs/experiment/finetune_docstrings_plain.yaml
    python evaluate.py compare --config configs/experiment/demo.yaml ... --output runs/demo_plain (docs/demo.md)
    python -m benchmarks.update_pages

A part whose results are not there is left as it is.
"""

import argparse
import shutil
from pathlib import Path

from benchmarks.markers import filled
from hsdlab.records.comparison import Comparison, ComparisonRow
from hsdlab.records.provenance import RunInfo
from hsdlab.reporting import comparison
from hsdlab.reporting.markdown import markdown_table
from hsdlab.reporting.side_by_side import side_by_side_table
from hsdlab.reporting.tables import estimate
from hsdlab.runs.demo import how_to_read

ROOT = Path(__file__).parents[1]
DEMO = ROOT / "docs/demo.md"
PICTURE = ROOT / "docs/demo_pareto.png"
HEADER = (
    *("Strategy", "Average depth", "ROUGE-L, trained to skip", "% of full depth", "ROUGE-L, trained plainly"),
    *("% of full depth", "ms per decode step", "Measured speed-up"),
)


def provenance(run: RunInfo) -> str:
    """Return a sentence on where and from which commit a run came."""
    commit = "outside git" if run.git is None else run.git.commit[:10]
    changed = " with uncommitted changes" if run.git and run.git.dirty else ""
    return (
        f"Measured on {run.date_utc[:10]}, commit {commit}{changed}, {run.machine.cpu}, {run.machine.cores} cores, "
        f"torch {run.versions['torch']}."
    )


def demo(aware: Comparison, plain: Comparison) -> str:
    """Return the demo's part of its page: each strategy on the model trained to skip, and on the plainly trained one.

    Args:
        aware: Of the model trained to skip; layers and times are its.
        plain: Of the other one.

    Raises:
        ValueError: If the two do not hold the same strategies over equally many examples.
    """
    expected, got = ([(row.name, row.examples) for row in each.rows] for each in (aware, plain))
    if got != expected:
        raise ValueError(f"expected the same strategies and examples of both models, got {expected} and {got}")
    table = markdown_table(HEADER, [_cells(*pair) for pair in zip(aware.rows, plain.rows, strict=True)])
    notes = [
        f"{aware.baseline.examples} examples; in brackets 95 % bootstrap intervals over them. Both models had equally "
        "many training steps. Layers and times are those of the model trained to skip.",
        "Layers are no speed-up: that is measured, decode steps only, prefill apart.",
        provenance(aware.run),
    ]
    picture = f"![Quality against layers and against time]({PICTURE.name})"
    return "\n\n".join([table, picture, "\n".join(f"- {note}" for note in notes)])


def first_look(found: Comparison) -> str:
    """Return the part of the demo's page that shows what `hsdlab demo` prints.

    Args:
        found: Of both models.
    """
    return f"{side_by_side_table(found)}\n\n{how_to_read(found).strip()}\n\n{provenance(found.run)}"


def _cells(row: ComparisonRow, other: ComparisonRow) -> list[str]:
    """Return a strategy's line of the demo's table."""
    quality = [
        cell
        for each in (row, other)
        for cell in (estimate(each.quality["rougeL"], 3), f"{each.percent_of_baseline['rougeL'].value:.0f}")
    ]
    time = [f"{row.figure('decode_step_ms'):.1f}", f"{row.speed_up:.2f}×"]
    return [f"`{row.name}`", f"{row.average_layers:.1f}", *quality, *time]


def _fill(page: Path, part: str, content: str) -> None:
    page.write_text(filled(page.read_text(encoding="utf-8"), part, content), encoding="utf-8")


def main() -> None:
    """Update the page from the folders that are there."""
    parser = argparse.ArgumentParser(description="Put the demo's own figures into docs.")
    parser.add_argument("--first-look", type=Path, default=ROOT / "runs/demo", help="folder of hsdlab demo")
    parser.add_argument("--demo", type=Path, default=ROOT / "runs/demo_train", help="folder of make demo-train")
    parser.add_argument("--plain", type=Path, default=ROOT / "runs/demo_plain", help="that of the plain model")
    folders = parser.parse_args()
    if (folders.first_look / comparison.FILE).is_file():
        _fill(DEMO, "first_look", first_look(Comparison.read(folders.first_look / comparison.FILE)))
        print(f"first look: from {folders.first_look}")
    else:
        print(f"first look: left as it is, no {comparison.FILE} in {folders.first_look}")
    comparisons = [folder / comparison.FILE for folder in (folders.demo, folders.plain)]
    if all(file.is_file() for file in comparisons):
        _fill(DEMO, "demo", demo(*map(Comparison.read, comparisons)))
        shutil.copyfile(folders.demo / "pareto.png", PICTURE)
        print(f"demo:  from {folders.demo} and {folders.plain}")
    else:
        print(f"demo:  left as it is, no {comparison.FILE} in {folders.demo} or {folders.plain}")


if __name__ == "__main__":
    main()
