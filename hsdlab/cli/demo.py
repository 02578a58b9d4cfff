"""The first look: `hsdlab demo`, or `make demo`."""

import argparse
import json
import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from hsdlab.cli.exits import run_or_exit
from hsdlab.data import Restaurants
from hsdlab.runs.demo import MODELS, demo

OUTPUT = Path("runs/demo")
STRATEGY = '''\
"""A strategy of your own: it runs every second layer."""

from hsdlab import ScheduledStrategy


class EveryOther(ScheduledStrategy):
    """Run every second layer."""

    def layers_at(self, step, num_layers, max_steps):
        return tuple(range(0, num_layers, 2))
'''
OWN_EXAMPLES = 8


def main(args: Sequence[str] | None = None) -> None:
    """Run the demo.

    Args:
        args: The command line; by default that of the process.
    """
    run_or_exit(_command, args)


def _command(args: list[str] | None) -> None:
    parser = argparse.ArgumentParser(
        prog="hsdlab demo",
        description="Two fine-tuned models under six strategies, side by side: a table and a picture.",
    )
    parser.add_argument("--output", type=Path, default=OUTPUT, help=f"Folder for all that is written ({OUTPUT}).")
    folder = parser.parse_args(args).output
    demo(folder)
    print(next_steps(folder))


def next_steps(folder: Path) -> str:
    """Write examples of data and of a strategy into a folder, for the user to change; files that exist stay.

    Args:
        folder: The output folder of the demo.

    Returns:
        Three commands that use the files, with a line on each.
    """
    data, module = folder / "your_data", folder / "my_strategy.py"
    data.mkdir(parents=True, exist_ok=True)
    examples = [
        {"id": each.id, "source": each.source, "references": each.references}
        for each in Restaurants().examples("test")[:OWN_EXAMPLES]
    ]
    lines = "".join(json.dumps(example, ensure_ascii=False) + "\n" for example in examples)
    for file, content in ((data / "test.jsonl", lines), (module, STRATEGY)):
        if not file.exists():  # which the user was told to change
            file.write_text(content, encoding="utf-8")
    hsdlab, model = _hsdlab(), MODELS["trained to skip"]
    where = shlex.quote(str(folder))
    return f"""
Three commands to try next:

  Train your own: a model that can skip, on documentation that comes with Python packages (some minutes)
    {hsdlab} fit --config experiment/finetune_docstrings --output {where}/my_training

  Your own data: put yours into {data / "test.jsonl"}, a line an example
    {hsdlab} compare --model.name={model} --model.num_beams=1 \\
      --data=JSONLines --data.folder={where}/your_data --strategies='[FullDepth, HSD]' --output {where}/my_data

  Your own strategy: change {module}
    PYTHONPATH={where} {hsdlab} test --model.name={model} --model.num_beams=1 \\
      --data=Restaurants --skip=my_strategy.EveryOther --output {where}/my_strategy
"""


def _hsdlab() -> str:
    """Return the console script as it is typed in the present folder: "hsdlab" if the shell finds it, else its path."""
    path = Path(sys.executable).with_name("hsdlab")
    if (found := shutil.which("hsdlab")) is not None and Path(found).parent == path.parent:
        return "hsdlab"
    return shlex.quote(os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path))


if __name__ == "__main__":
    main()
