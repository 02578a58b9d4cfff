"""The command `report`: draw finished runs anew, or compare the strategies of several."""

import argparse
from pathlib import Path
from typing import NoReturn

from hsdlab.cli.names import MORE
from hsdlab.program import typed
from hsdlab.runs.report import report

REPORT = "report"
DESCRIPTION = """\
Draw the tables, pictures and TensorBoard events of a finished run again, from
its folder alone: no model and no data is loaded. Several runs over the same
examples, of a plain and a skip-aware model, say, make one comparison.

  {program} runs/compare
  {program} plain=runs/plain skip-aware=runs/skip_aware --output runs/both
"""


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence, without the usage."""

    def error(self, message: str) -> NoReturn:
        """End with exit code 2."""
        self.exit(2, f"error: {message}\n{MORE}\n")


def report_command(args: list[str]) -> None:
    """Run the command.

    Args:
        args: The command line after "report".
    """
    parser = _Parser(
        prog=typed(REPORT).removeprefix("python "),
        description=DESCRIPTION.format(program=typed(REPORT)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="Output folder of a run, or NAME=FOLDER to name it in the tables."
    )
    parser.add_argument("--output", type=Path, help="Folder for the comparison of several runs.")
    given, unknown = parser.parse_known_args(args)
    if unknown:
        parser.error(f"`report` has no option {unknown[0]}; it takes folders of runs, and --output")
    pairs = [each.split("=", 1) for each in given.runs if "=" in each and not Path(each).exists()]
    named = dict(pairs)
    if len(named) < len(pairs):
        parser.error("got a name twice: give each run a NAME= of its own")
    plain = [Path(each) for each in given.runs if "=" not in each or Path(each).exists()]
    if named and plain:
        parser.error("give a NAME= for each run or for none")
    report({name: Path(folder) for name, folder in named.items()} if named else plain, given.output)
