"""Where each command line begins: the console script `hsdlab`, evaluate.py and train.py.

The overview and an unknown command are answered here, before torch, Lightning or transformers is imported: a second
instead of ten. A known command's module is imported last.
"""

import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import NoReturn

from hsdlab.cli import names
from hsdlab.errors import RunError, UserError
from hsdlab.program import hyphenated, of_train
from hsdlab.version import __version__

BESIDE = {
    "demo": ("two models under six strategies, side by side, in a few minutes", "hsdlab.cli.demo"),
    "data": ("prepare the papers' data sets out of their official files", "hsdlab.data.prepare"),
    "configs": ("list, show or copy the configs that come with hsdlab", "hsdlab.cli.packaged_configs"),
    "models": ("list the embedded models and adapters; check what works for a model", "hsdlab.cli.model_list"),
}
"""The commands of `hsdlab` alone: name -> what it does, and the module whose `main` takes the words after it."""

HELP = ("-h", "--help")
EXAMPLES = """\
Examples:
  hsdlab compare --config experiment/quickstart_compare
  hsdlab compare --data.folder=my_data --model.name=my_model --strategies='[FullDepth, HSD]'
  hsdlab configs list
"""


def main(args: Sequence[str] | None = None) -> None:
    """Run `hsdlab`.

    Args:
        args: The command line; by default that of the process.

    Raises:
        SystemExit: See `hsdlab.cli.exits.run_or_exit`.
    """
    groups = {
        "Decode and measure": names.EVALUATE,
        "Train": {of_train(name): text for name, text in names.TRAIN.items()},
        "What comes along": {name: text for name, (text, _) in BESIDE.items()},
    }
    words = list(sys.argv[1:] if args is None else args)
    position = _answered(words, groups, "hsdlab", EXAMPLES)
    _share_the_cores()
    name = hyphenated(words[position])
    if name in BESIDE:
        _end_with_a_sentence(import_module(BESIDE[name][1]).main, words[position + 1 :])
        return
    trained = {of_train(each): each for each in names.TRAIN}
    script = "train" if name in trained else "evaluate"
    _run(script, words, position, trained.get(name, name.replace("-", "_")), args)


def evaluate(args: Sequence[str] | None = None) -> None:
    """Run `python evaluate.py`.

    Args:
        args: The command line after the script's name. None for that of the process.

    Raises:
        SystemExit: See `hsdlab.cli.exits.run_or_exit`.
    """
    _script("evaluate", names.EVALUATE, args)


def train(args: Sequence[str] | None = None) -> None:
    """Run `python train.py`.

    Args:
        args: The command line after the script's name. None for that of the process.

    Raises:
        SystemExit: See `hsdlab.cli.exits.run_or_exit`.
    """
    _script("train", names.TRAIN, args)


def _script(script: str, known: Mapping[str, str], args: Sequence[str] | None) -> None:
    _share_the_cores()
    words = list(sys.argv[1:] if args is None else args)
    if names.command_position(words) is None and any(word.partition("=")[0] in names.CONFIG for word in words):
        import_module(f"hsdlab.cli.{script}").main(args)  # the config may name the command
        return
    position = _answered(words, {"Commands": known}, f"python {script}.py", "")
    _run(script, words, position, words[position].replace("-", "_"), args)


def _share_the_cores() -> None:
    """Have OpenMP's threads wait for each other awake for some microseconds only, unless the user says otherwise.

    By default they wait awake for long: where other processes use the cores too, decoding is then several times
    slower. Threads that sleep at once have to be woken in every operation, which costs a third of a decode step of a
    small model. docs/performance.md has the figures. OpenMP reads the variables once, when torch is imported.
    """
    if "torch" not in sys.modules and "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def _answered(words: Sequence[str], groups: Mapping[str, Mapping[str, str]], program: str, examples: str) -> int:
    """Return the position of a known command.

    Raises:
        SystemExit: 0 after the overview or the version, 2 where there is no command or an unknown one.
    """
    known = {hyphenated(name): text for group in groups.values() for name, text in group.items()}
    position = names.command_position(words)
    before = words[: len(words) if position is None else position]
    if any(word in HELP for word in before):
        sys.stdout.write(overview(groups, program, examples))
        sys.exit(0)
    if "--version" in before:
        sys.stdout.write(f"hsdlab {__version__}\n")
        sys.exit(0)
    if position is None:
        _refuse(f"no command given. The commands are {', '.join(known)}: see `{program} --help`.")
    if hyphenated(words[position]) not in known:
        _refuse(names.unknown_command(words[position], known, program))
    return position


def overview(groups: Mapping[str, Mapping[str, str]], program: str, examples: str) -> str:
    """Compose what `--help` prints without a command.

    Args:
        groups: Heading -> command -> what it does.
        program: What is typed before a command.
        examples: Lines of examples; may be empty.

    Returns:
        The text, with a line break at its end.
    """
    width = max(len(name) for group in groups.values() for name in group) + 2
    lines = [f"usage: {program} COMMAND [options]", "", "Decode text with fewer layers per token.", ""]
    for heading, group in groups.items():
        lines += [f"{heading}:", *(f"  {hyphenated(name):{width}}{text}" for name, text in group.items()), ""]
    lines += [
        f"`{program} COMMAND --help` explains the options of a command. --debug shows the traceback of an error.",
        *(["", examples.rstrip()] if examples else []),
    ]
    return "\n".join(lines) + "\n"


def _run(script: str, words: list[str], position: int, name: str, args: Sequence[str] | None) -> None:
    """Import a script's command line and run a command with it, under the name that the script has for it.

    Classes of one's own in the current folder are found (``--skip=my_module.MyStrategy``), after all that is installed.
    """
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    if name != "report":
        _check_configs(words)
    command_line = import_module(f"hsdlab.cli.{script}").main
    if words[position] == name:
        command_line(args)
        return
    # sys.argv stays as it was typed: Lightning starts further processes with it, and run.json notes it. Lightning
    # warns of arguments beside those of the process.
    warnings.filterwarnings("ignore", message="LightningCLI's args parameter is intended")
    command_line([*words[:position], name, *words[position + 1 :]])


def _check_configs(words: Sequence[str]) -> None:
    """Refuse configs that are missing or no YAML now, and not after seconds of imports, when the parser reads them.

    Raises:
        SystemExit: 2, with the parser's own sentence.
    """
    from hsdlab.cli.configs import with_included_configs  # for a command alone

    try:
        with_included_configs(words)
    except UserError as error:
        _refuse(f"{error}\n{names.MORE}")


def _end_with_a_sentence(command: Callable[[list[str]], None], words: list[str]) -> None:
    """Run a light command; `run_or_exit` does it for the others, and imports Lightning."""
    try:
        command([word for word in words if word != "--debug"])
    except (UserError, OSError) as error:
        if "--debug" in words:
            raise
        if isinstance(error, UserError) and not isinstance(error, RunError):
            _refuse(str(error))
        sys.exit(f"error: {error}")


def _refuse(message: str) -> NoReturn:
    sys.stderr.write(f"error: {message}\n")
    sys.exit(2)
