"""Put the demo's and the bench's own figures into README.md, so that none is typed by hand.

    make demo
    python train.py fit --config configs/experiment/finetune_docstrings_plain.yaml
    python evaluate.py compare --config configs/experiment/demo.yaml ... --output runs/demo_plain      (README)
    python evaluate.py bench ... --output runs/bench                                          (README, "Speed")
    python docs/update_readme.py

A part whose results are not there is left as it is.
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from markers import filled

from hsdlab.reporting.markdown import markdown_table

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PICTURE = ROOT / "docs/demo_pareto.png"
HEADER = (
    *("Strategy", "Avg. layers", "ROUGE-L, trained to skip", "% of full depth", "ROUGE-L, trained plainly"),
    *("% of full depth", "ms per decode step", "Measured speed-up"),
)


def provenance(run: dict[str, Any]) -> str:
    """Return a sentence on where and from which commit a run came."""
    git, machine = run.get("git") or {}, run["machine"]
    commit = git.get("commit", "outside git")[:10] + (" with uncommitted changes" if git.get("dirty") else "")
    return (
        f"Measured on {run['date_utc'][:10]}, commit {commit}, {machine['cpu']}, {machine['cores']} cores, "
        f"torch {run['versions']['torch']}."
    )


def demo(aware: dict[str, Any], plain: dict[str, Any]) -> str:
    """Return the README's demo part: each strategy on the model trained to skip, and on the plainly trained one.

    Args:
        aware: comparison.json of the model trained to skip; layers and times are its.
        plain: That of the other one.

    Raises:
        ValueError: If the two do not hold the same strategies over equally many examples.
    """
    rows, others = aware["strategies"], plain["strategies"]
    sides = [[(row["name"], row["examples"]) for row in side] for side in (rows, others)]
    if sides[0] != sides[1]:
        raise ValueError(f"expected the same strategies and examples on both sides, got {sides[0]} and {sides[1]}")
    table = markdown_table(HEADER, [_cells(row, other) for row, other in zip(rows, others, strict=True)])
    notes = [
        f"{rows[0]['examples']} examples; in brackets 95 % bootstrap intervals over them. Both models had equally many "
        "training steps. Layers and times are those of the model trained to skip.",
        "Layers are no speed-up: that is measured, decode steps only, the prompt pass apart.",
        provenance(aware["run"]),
    ]
    picture = f"![Quality against layers and against time]({PICTURE.relative_to(ROOT).as_posix()})"
    return "\n\n".join([table, picture, "\n".join(f"- {note}" for note in notes)])


def _cells(row: dict[str, Any], other: dict[str, Any]) -> tuple[str, ...]:
    """Return a strategy's line of the demo's table."""
    quality = [
        cell
        for side in (row, other)
        for cell in (
            "{value:.3f} [{low:.3f}, {high:.3f}]".format(**side["quality"]["rougeL"]),
            f"{side['percent_of_baseline']['rougeL']['value']:.0f}",
        )
    ]
    cost = row["cost"]
    return (
        f"`{row['name']}`",
        f"{cost['average_layers']:.1f}",
        *quality,
        f"{cost['decode_step_ms']:.1f}",
        f"{row['speed_up']:.2f}×",
    )


def main() -> None:
    """Update README.md from the folders that are there."""
    parser = argparse.ArgumentParser(description="Put the demo's and the bench's own figures into README.md.")
    parser.add_argument("--demo", type=Path, default=ROOT / "runs/demo", help="folder of make demo")
    parser.add_argument("--plain", type=Path, default=ROOT / "runs/demo_plain", help="that of the plain model")
    parser.add_argument("--bench", type=Path, default=ROOT / "runs/bench", help="folder of evaluate.py bench")
    folders = parser.parse_args()
    text = README.read_text(encoding="utf-8")
    comparisons = [folder / "comparison.json" for folder in (folders.demo, folders.plain)]
    if all(file.is_file() for file in comparisons):
        text = filled(text, "demo", demo(*(json.loads(file.read_text(encoding="utf-8")) for file in comparisons)))
        shutil.copyfile(folders.demo / "pareto.png", PICTURE)
        print(f"demo:  from {folders.demo} and {folders.plain}")
    else:
        print(f"demo:  left as it is, no comparison.json in {folders.demo} or {folders.plain}")
    if (folders.bench / "bench.md").is_file():
        _, _, report = (folders.bench / "bench.md").read_text(encoding="utf-8").partition("\n")  # without its title
        run = json.loads((folders.bench / "bench.json").read_text(encoding="utf-8"))["run"]
        text = filled(text, "bench", f"{report.strip()}\n\n{provenance(run)}")
        print(f"bench: from {folders.bench}")
    else:
        print(f"bench: left as it is, no bench.md in {folders.bench}")
    README.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
