"""`hsdlab data prepare`: fetch a data set's official files and write what the configs read."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from textwrap import fill, indent

from hsdlab.data.places import VARIABLE
from hsdlab.data.prepare.official import OFFICIAL_SETS, OTHER_NAMES
from hsdlab.data.prepare.write import Prepared, prepare
from hsdlab.errors import UserError

DESCRIPTION = """\
Write the data sets of the papers as JSON Lines, the form that the configs read.
Each official file is fetched by its address and checked by its SHA-256. A
download that was stopped is resumed. With --from the files are taken from a
folder.

  hsdlab data prepare e2e_nlg
  hsdlab data prepare e2e_nlg --from downloads --output data/e2e_nlg

"""


def main(args: Sequence[str] | None = None) -> None:
    """Run the command.

    Args:
        args: What follows `hsdlab data`, "prepare" first; `prepare` may be left out. By default that of the process.

    Raises:
        UserError, RunError: What the command line ends with as one sentence.
        SystemExit: A usage error, or --help.
    """
    words = list(sys.argv[1:] if args is None else args)
    given = _parser().parse_args(words[1:] if words[:1] == ["prepare"] else words)
    if given.output is not None and len(given.name) > 1:
        raise UserError(f"--output={given.output} is the folder of one data set: give one name, or leave it out")
    for name in given.name:
        other = OTHER_NAMES.get(name)
        if other is not None:
            print(f"{name}: the official set is {other}, in the folder {OFFICIAL_SETS[other].folder}.")
        _tell(other or name, prepare(name, given.source, given.output))


def _parser() -> argparse.ArgumentParser:
    sets = "\n".join(
        f"  {name}\n{indent(fill(each.title, 76), '    ')}\n{indent(fill(each.licence, 76), '    ')}"
        for name, each in OFFICIAL_SETS.items()
    )
    parser = argparse.ArgumentParser(
        prog="hsdlab data prepare",
        description=f"{DESCRIPTION}data sets:\n{sets}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", nargs="+", metavar="NAME", help="Which data set: see above.")
    parser.add_argument(
        "--from", dest="source", type=Path, metavar="FOLDER", help="Folder that holds the official files."
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FOLDER",
        help=f"Where to write; by default the set's folder in ${VARIABLE}, or else in ./data.",
    )
    return parser


def _tell(name: str, made: Prepared) -> None:
    """Say what was written, and what somebody who compares scores has to know."""
    counts = ", ".join(f"{count:,} {split}" for split, count in made.examples.items())
    print(f"{made.folder}: {counts} examples{', as they were there already' if made.unchanged else ''}.")
    if made.missing:
        print(f"The folder given with --from has no {', '.join(made.missing)}: their splits are not written.")
    for file, sha256 in made.noted.items():
        print(f"The SHA-256 of {file} was not known beforehand; it is {sha256}, noted for the next time.")
    print(OFFICIAL_SETS[name].note)
