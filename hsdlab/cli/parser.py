"""The parser of `evaluate.py` and `train.py`: classes by their short names, and errors in one message."""

import inspect
import os
import re
import sys
import traceback
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, ClassVar, NoReturn

from jsonargparse import Namespace, set_parsing_settings
from jsonargparse._util import import_object
from lightning.pytorch.cli import LightningArgumentParser

from hsdlab.cli.class_arguments import arguments, given_classes
from hsdlab.cli.config_checks import check_value
from hsdlab.cli.configs import place_of, with_included_configs, with_strategy_as_list, without_include
from hsdlab.cli.help import ALL, own_options_first, short_help
from hsdlab.cli.names import MORE, SWITCHES
from hsdlab.cli.refusals import Refusal
from hsdlab.cli.renamed import with_new_keys, with_new_options
from hsdlab.cli.strategy_words import with_calls_written_out, with_strategies_written_out
from hsdlab.data import GenerationDataModule
from hsdlab.errors import UserError
from hsdlab.reasons import reason
from hsdlab.strategies import ConfidenceStrategy, ScheduledStrategy, SkipStrategy

_BASES: dict[str, type] = {
    "data": GenerationDataModule,
    "skip": SkipStrategy,
    "schedule": ScheduledStrategy,
    "confidence": ConfidenceStrategy,
}
"""What the classes of an option derive from."""
OF_PATHS = ("--output", "--data.folder", "--model.adapter")
"""Options whose value is a path that may begin with "~"."""
_OF_STRATEGIES = ("", "skip", "strategies", "first", "skip_strategies", "draft")
"""The options and arguments that take any strategy, and "" for the name of any."""

set_parsing_settings(import_path_denylist=sorted(sys.stdlib_module_names))
# A class path names a strategy, a data set or a part of Lightning's: never something of Python itself, whose import may
# do anything (os.system, antigravity).


class EvaluateParser(LightningArgumentParser):
    """Names classes instead of unions, and says what is wrong without the usage text of 100 lines."""

    words: ClassVar[Sequence[str]] = ()
    """The command line that is parsed, for messages: the parsers of a subcommand and of a class do not see it."""
    whole: ClassVar["EvaluateParser | None"] = None
    """The parser of the command line."""
    explains_all: ClassVar[bool] = False
    """Whether the help is to explain every option."""
    trains: bool = False
    """Whether the commands are those of train.py."""

    def add_lightning_class_args(
        self, lightning_class: Any, nested_key: str, subclass_mode: bool = False, required: bool = True
    ) -> list[str]:
        """Add a class; in subclass mode as a plain class type (Lightning's `Optional` would accept null)."""
        if not subclass_mode:
            return super().add_lightning_class_args(lightning_class, nested_key)
        summary = lightning_class.__doc__.splitlines()[0]
        self.add_argument(f"--{nested_key}", type=lightning_class, required=required, help=summary)
        return [nested_key]

    def parse_args(self, args: Sequence[str] | None = None, *more: Any, **options: Any) -> Namespace:
        """Parse; configs may include others, and options be written with hyphens (``--max-loss``) or by old names."""
        args = _with_switches_on([_with_underscores(arg) for arg in (sys.argv[1:] if args is None else args)])
        outermost = not hasattr(self, "subcommand")  # the rest of the words goes to the parser of the subcommand
        if outermost:
            EvaluateParser.words, EvaluateParser.whole = args, self
            EvaluateParser.explains_all = ALL in args
            args = ["--help" if arg == ALL else arg for arg in args]
        try:
            for arg in args:
                check_value(arg.partition("=")[2] if arg.startswith("-") else arg, arg.partition("=")[0][:40])
            args = with_new_options(with_included_configs(args))
            args = [_at_home(arg) for arg in args]
            args = with_strategies_written_out(args, _strategies())
        except UserError as error:
            self.error(str(error), error)
        if outermost:
            EvaluateParser.words = args
        try:
            return super().parse_args(args, *more, **options)
        except (Exception, SystemExit) as error:
            module = _imported_when(error)
            if not outermost or module is None:
                raise
            why = "it ends the program" if isinstance(error, SystemExit) else reason(error)
            refusal = UserError(f"the module {module} cannot be imported: {why} ({place(error)})")
            self.error(str(refusal), refusal)

    def parse_string(self, content: str, path: str | os.PathLike[str] = "", *more: Any, **options: Any) -> Namespace:
        """Parse a config's own settings under their present names; what it includes stands on the command line."""
        if os.path.isfile(path):  # not settings that were given as a string, which cannot include anything
            content = without_include(content)
        names = {name for action in self._actions for name in action.option_strings}
        if {"--skip", "--strategies"} & names == {"--strategies"}:
            content = with_strategy_as_list(content)
        try:
            content = with_calls_written_out(content, str(path) or "a config", _strategies())
            content = with_new_keys(content, getattr(self, "subcommand", None))
        except UserError as error:
            self.error(str(error), error)
        return super().parse_string(content, path, *more, **options)

    def format_help(self) -> str:
        """Return the help: of a command its own options in short, unless all are asked for."""
        command = getattr(self, "subcommand", None)
        if command is None:
            return super().format_help()
        trains = EvaluateParser.whole is not None and EvaluateParser.whole.trains
        if EvaluateParser.explains_all:
            own_options_first(self, command, trains)
            return super().format_help()
        data = {each.__name__: each for each in _subclasses(GenerationDataModule) if _is_ours(each)}
        return short_help(self, command, trains, self._classes("skip"), dict(sorted(data.items())))

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Say in one sentence what is wrong, and end with exit code 2."""
        sentence = message if isinstance(ex, UserError) else self._sentence(message)
        sys.stderr.write(f"error: {sentence}\n{MORE}\n")
        sys.exit(2)

    def _sentence(self, message: str) -> str:
        """Return a message of jsonargparse as a sentence; the values and configs have been checked by now."""
        words = [word.partition("=") for word in EvaluateParser.words]
        files = [Path(value) for option, _, value in words if option == "--config" and os.path.isfile(value)]
        whole = EvaluateParser.whole or self
        refusal = Refusal(
            EvaluateParser.words,
            whole._command(),
            whole._options(),
            whole._classes,
            lambda key: place_of(key, files),
            list(given_classes(EvaluateParser.words, files, _strategies())),
        )
        return refusal.sentence(message)

    def _subparsers_by_name(self) -> dict[str, "EvaluateParser"]:
        found = getattr(self, "_subcommands_action", None)
        return {} if found is None else dict(found._name_parser_map)

    def _command(self) -> str:
        """Return the subcommand that is parsed; "" before one is named."""
        return next((word for word in EvaluateParser.words if word in self._subparsers_by_name()), "")

    def _options(self) -> set[str]:
        """Return the names of all options, also those that only a class has which an option names."""
        parser = self._subparsers_by_name().get(self._command(), self)
        names = {word.lstrip("-") for action in parser._actions for word in action.option_strings}
        for option in ("data", "skip"):
            if option in names:
                classes = {name for base in (_BASES[option],) for name in _subclasses(base)}
                names |= {f"{option}.{name}" for each in classes for name in arguments(each)}
        return {name for name in names if not name.endswith((".help", "+")) and len(name) > 1}

    def _classes(self, last: str) -> list[str]:
        """Return the names of what an option takes, by the last part of its name; of the commands for "subcommand"."""
        if last == "subcommand":
            return list(self._subparsers_by_name())
        base = SkipStrategy if last in _OF_STRATEGIES else _BASES.get(last)
        return [] if base is None else sorted({each.__name__ for each in _subclasses(base) if _is_ours(each)})


def _imported_when(error: BaseException) -> str | None:
    """Return the module that jsonargparse imported for a class path when an error was raised there; else None."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_code is import_object.__code__:
            return str(frame.f_locals.get("name_module"))
    return None


def place(error: BaseException) -> str:
    """Find where an error was raised.

    Args:
        error: With its traceback.

    Returns:
        File and line, such as "mine.py, line 3"; of a module that is no valid Python, those of the syntax error.
    """
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}, line {error.lineno}"
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{last.filename}, line {last.lineno}"


def _at_home(arg: str) -> str:
    """Return an argument with the home folder in place of "~", which shells leave after an equals sign."""
    option, _, value = arg.partition("=")
    return f"{option}={os.path.expanduser(value)}" if option in OF_PATHS and value.startswith("~") else arg


def _with_underscores(arg: str) -> str:
    """Return an argument with underscores in the name of its option; values stay."""
    return re.sub(r"^--[\w.-]+", lambda name: "--" + name[0][2:].replace("-", "_"), arg)


def _with_switches_on(args: Sequence[str]) -> list[str]:
    """Return a command line in which a switch without a value is true."""
    words = {f"--{name}" for name in SWITCHES}
    return [
        f"{arg}=true" if arg in words and (after is None or after.startswith("-")) else arg
        for arg, after in zip_longest(args, args[1:])
    ]


def _subclasses(base: type[Any]) -> Iterator[type[Any]]:
    """Yield the classes derived from a base that can be made."""
    subclass: type[Any]
    for subclass in base.__subclasses__():
        if not inspect.isabstract(subclass):
            yield subclass
        yield from _subclasses(subclass)


def _strategies() -> dict[str, type]:
    """Return the strategies by their short names."""
    return {each.__name__: each for each in _subclasses(SkipStrategy)}


def _is_ours(cls: type) -> bool:
    return cls.__module__.startswith("hsdlab.")
