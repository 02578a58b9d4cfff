"""Put the demo's and the bench's own output into README.md, so that no figure is typed by hand.

    make demo
    python evaluate.py bench ... --output runs/bench      (README, "Speed")
    python docs/update_readme.py

A part whose results are not there is left as it is.
"""

import argparse
import json
import re
import shutil
from pathlib import Path

from markers import filled

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PICTURE = ROOT / "docs/demo_pareto.png"
COLUMNS = {  # section of comparison.md -> columns of the README's table
    "Quality": ("Strategy", "Avg. layers", "ROUGE-L", "BERTScore F1", "Output tokens"),
    "Cost": ("ms per decode step", "Measured speed-up"),
}


def pipe_tables(markdown: str) -> dict[str, list[list[str]]]:
    """Return the rows of the table below each second-level heading, the header first, the rule left out."""
    tables: dict[str, list[list[str]]] = {}
    for heading, body in re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", markdown, re.DOTALL | re.MULTILINE):
        rows = [line.strip("| ").split(" | ") for line in body.splitlines() if line.startswith("|")]
        if rows:
            tables[heading] = [rows[0], *rows[2:]]
    return tables


def provenance(run: dict) -> str:
    """Return a sentence on where and from which commit a run came."""
    git, machine = run.get("git") or {}, run["machine"]
    commit = git.get("commit", "outside git")[:10] + (" with uncommitted changes" if git.get("dirty") else "")
    return (
        f"Measured on {run['date_utc'][:10]}, commit {commit}, {machine['cpu']}, {machine['cores']} cores, "
        f"torch {run['versions']['torch']}."
    )


def demo(comparison: str) -> str:
    """Return the README's demo part from comparison.md.

    Raises:
        ValueError: If a section or column is missing there.
    """
    tables = pipe_tables(comparison)
    rows: list[list[str]] = []
    for section, names in COLUMNS.items():
        if section not in tables:
            raise ValueError(f"comparison.md has no section {section!r}; found {', '.join(tables)}")
        places = [tables[section][0].index(name) for name in names]
        picked = [[row[place] for place in places] for row in tables[section]]
        rows = picked if not rows else [left + right for left, right in zip(rows, picked, strict=True)]
    rule = ["---", *("---:" for _ in rows[0][1:])]
    lines = [f"| {' | '.join(row)} |" for row in (rows[0], rule, *rows[1:])]
    notes = "\n".join(line for line in comparison.splitlines() if line.startswith("- "))
    (run,) = re.findall(r"```json\n(.*?)\n```", comparison, re.DOTALL)
    picture = f"![Quality against layers and against time]({PICTURE.relative_to(ROOT).as_posix()})"
    return "\n\n".join(["\n".join(lines), picture, f"{notes}\n- {provenance(json.loads(run))}"])


def main() -> None:
    """Update README.md from the folders that are there."""
    parser = argparse.ArgumentParser(description="Put the demo's and the bench's own output into README.md.")
    parser.add_argument("--demo", type=Path, default=ROOT / "runs/quickstart_compare", help="folder of make demo")
    parser.add_argument("--bench", type=Path, default=ROOT / "runs/bench", help="folder of evaluate.py bench")
    folders = parser.parse_args()
    text = README.read_text(encoding="utf-8")
    if (folders.demo / "comparison.md").is_file():
        text = filled(text, "demo", demo((folders.demo / "comparison.md").read_text(encoding="utf-8")))
        shutil.copyfile(folders.demo / "pareto.png", PICTURE)
        print(f"demo:  from {folders.demo}")
    else:
        print(f"demo:  left as it is, no comparison.md in {folders.demo}")
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
