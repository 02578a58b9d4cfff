"""The parser of `evaluate.py` and `train.py`: classes by their short names, and errors in one message."""

import inspect
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import yaml
from jsonargparse import Namespace, _typehints
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

import hsdlab.data
import hsdlab.strategies  # noqa: F401  their names are short names on the command line
from hsdlab.cli.configs import with_included_configs, without_include
from hsdlab.cli.renamed import with_new_keys, with_new_options
from hsdlab.cli.stops import Stopped, StopsAtOnce
from hsdlab.data import GenerationDataModule
from hsdlab.errors import UserError, faults_of_the_run
from hsdlab.runs.progress import ShowsProgress
from hsdlab.strategies import ConfidenceStrategy, ScheduledStrategy, SkipStrategy

_BASES: dict[str, type] = {
    "data": GenerationDataModule,
    "schedule": ScheduledStrategy,
    "confidence": ConfidenceStrategy,
}
"""What the classes of an option derive from; of all others, SkipStrategy."""


class EvaluateParser(LightningArgumentParser):
    """Names classes instead of unions, and says what is wrong without the usage text of 100 lines."""

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
        args = [_with_underscores(arg) for arg in (sys.argv[1:] if args is None else args)]
        try:
            args = with_new_options(with_included_configs(args))
        except UserError as error:
            self.error(str(error), error)
        return super().parse_args(args, *more, **options)

    def parse_string(self, content: str, path: str | os.PathLike[str] = "", *more: Any, **options: Any) -> Namespace:
        """Parse a config's own settings under their present names; what it includes stands on the command line."""
        if os.path.isfile(path):  # not settings that were given as a string, which cannot include anything
            content = without_include(content)
        try:
            content = with_new_keys(content, getattr(self, "subcommand", None))
        except UserError as error:
            self.error(str(error), error)
        return super().parse_string(content, path, *more, **options)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Say what is wrong and end with exit code 2."""
        unknown = re.search(r'key "([\w.]+)".*Expected a dot import path string: (\S+)', message, re.DOTALL)
        if unknown:
            option = unknown[1].rpartition(".")[2]
            known = sorted(_names_of_subclasses(_BASES.get(option, SkipStrategy)))
            word = "unfit" if unknown[2] in _names_of_subclasses(SkipStrategy) else "unknown"
            message = (
                f"--{option}: {word} class {unknown[2]!r}; expected one of {', '.join(known)}, "
                "or the dotted path of your own, such as my_package.MyClass"
            )
        if message == "the following arguments are required: folder":
            message = "no data: give a folder of your own with --data.folder=path/to/folder, or a data set with --data="
            message += f", one of {', '.join(sorted(_names_of_subclasses(GenerationDataModule)))}"
        sys.stderr.write(f"error: {message}\nFor the options and their meaning add --help\n")
        sys.exit(2)


class SubcommandCLI(LightningCLI):
    """LightningCLI that builds the parser of the subcommand that the command line names, and no other.

    Each subcommand has all options of the Trainer, so that all parsers together take longer than most tests. Where no
    subcommand is named (``--help``, a misspelled one), all are built.

    Args:
        load: Makes the module from the options of `model`.
        trainer_class: Its methods are the subcommands.
        trainer_defaults: Options of the Trainer that differ from Lightning's.
        description: What the command does.
        args: The command line; by default that of the process.
    """

    def __init__(
        self,
        load: Callable[..., LightningModule],
        trainer_class: type[Trainer],
        trainer_defaults: dict[str, Any],
        description: str,
        args: Sequence[str] | None = None,
    ) -> None:
        self._words = sys.argv[1:] if args is None else args
        try:
            super().__init__(
                load,
                GenerationDataModule,
                subclass_mode_data=True,
                trainer_class=trainer_class,
                trainer_defaults={"callbacks": [StopsAtOnce()], **trainer_defaults},
                parser_class=EvaluateParser,
                parser_kwargs={"description": f"{description} With --debug every error shows its traceback."},
                save_config_callback=None,  # it wants a logger's folder; ours is written beside the results
                seed_everything_default=0,
                auto_configure_optimizers=False,
                load_from_checkpoint_support=False,
                args=None if args is None else list(args),
            )
        except Stopped as end:
            end.goes_on = self.how_to_go_on()
            raise

    def how_to_go_on(self) -> str:
        """Say what there is to go on with after the command was stopped."""
        raise NotImplementedError

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        """Make the Trainer, with our progress in place of Lightning's bar unless one is configured or none wanted."""
        listed = config.get("callbacks") or []
        given = [*callbacks, *(listed if isinstance(listed, list) else [listed])]
        wanted = config.get("enable_progress_bar") is not False
        if wanted and not any(isinstance(callback, ProgressBar) for callback in given):
            callbacks = [*callbacks, ShowsProgress()]
        return super()._instantiate_trainer(config, callbacks)

    def _run_subcommand(self, subcommand: str) -> None:
        with faults_of_the_run():  # its options have been taken
            super()._run_subcommand(subcommand)

    def _add_subcommands(self, parser: LightningArgumentParser, **kwargs: Any) -> None:
        known = self.subcommands()
        named = {name: skipped for name, skipped in known.items() if name in self._words} or known
        self.__dict__["subcommands"] = lambda: named
        super()._add_subcommands(parser, **kwargs)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse; a class that is named later takes no arguments over from the one named before."""
        with dropping_arguments_of_other_classes():
            super().parse_arguments(parser, args)


@contextmanager
def dropping_arguments_of_other_classes() -> Iterator[None]:
    """Have jsonargparse drop all arguments of a class when a later layer names another class.

    It has no option for it: by itself it keeps those that the new class has too, so that HSD would silently
    take SkipDecode's min_exit.
    """

    def drop(parser_or_action: Any, previous: Namespace | None, value: Namespace) -> None:
        if previous and "init_args" in previous and previous["class_path"] != value["class_path"]:
            previous["init_args"] = Namespace()

    keeping = _typehints.discard_init_args_on_class_path_change
    _typehints.discard_init_args_on_class_path_change = drop
    try:
        yield
    finally:
        _typehints.discard_init_args_on_class_path_change = keeping


def resolved_config(parser: LightningArgumentParser, config: Namespace) -> dict[str, Any]:
    """Return the configuration with all defaults filled in, without the folder: it runs again as it is."""
    resolved = yaml.safe_load(parser.dump(config, skip_unset=False, format="yaml"))
    return {name: value for name, value in resolved.items() if name not in ("output", "overwrite", "config")}


def _with_underscores(arg: str) -> str:
    """Return an argument with underscores in the name of its option; values stay."""
    return re.sub(r"^--[\w.-]+", lambda name: "--" + name[0][2:].replace("-", "_"), arg)


def _names_of_subclasses(base: Any) -> Iterator[str]:
    for subclass in base.__subclasses__():
        if not inspect.isabstract(subclass):
            yield subclass.__name__
        yield from _names_of_subclasses(subclass)
