"""One subcommand of a command line: its parser, its objects, its output folder, and what is made of their errors."""

import inspect
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace, _typehints
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

import hsdlab
import hsdlab.data
import hsdlab.strategies
from hsdlab.cli.exits import FOR_THE_USER
from hsdlab.cli.parser import EvaluateParser, place
from hsdlab.cli.stops import Stopped, StopsAtOnce
from hsdlab.cli.trainer_flags import check_flags, try_trainer
from hsdlab.data import GenerationDataModule
from hsdlab.errors import RunError, UserError, faults_of_the_run
from hsdlab.reasons import reason
from hsdlab.records.files import REASONS, fault_of_writing
from hsdlab.records.run_folder import RunFolder
from hsdlab.runs.progress import ShowsProgress


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

    Attributes:
        folder: The output folder of the run; None where there is none, or before it is known.
    """

    folder: RunFolder | None = None

    def __init__(
        self,
        load: Callable[..., LightningModule],
        trainer_class: type[Trainer],
        trainer_defaults: dict[str, Any],
        description: str,
        args: Sequence[str] | None = None,
    ) -> None:
        self._words = sys.argv[1:] if args is None else args
        self.trains = "fit" in self.subcommands()
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
        except BaseException as end:
            if self.folder is not None:
                self.folder.abandon(self.has_results())
            if isinstance(end, Stopped):
                end.goes_on = self.how_to_go_on()
            raise
        finally:
            if self.folder is not None:
                self.folder.release()

    def has_results(self) -> bool:
        """Tell whether the output folder holds anything that is worth keeping, after the run failed.

        Returns:
            False also where there is no output folder yet.
        """
        return self.folder is not None and self.folder.has_results()

    def check_trainer(self, made: Namespace) -> None:
        """Refuse options of the Trainer that cannot do what they say.

        Args:
            made: The options, callbacks and loggers as objects.

        Raises:
            UserError: Naming the option.
        """
        flags = self.config[self.subcommand].trainer
        defaults = {name: each.default for name, each in inspect.signature(Trainer).parameters.items()}
        defaults |= self.trainer_defaults
        check_flags(flags.as_dict(), defaults, str(self.subcommand), self.trains)
        own = made.callbacks if isinstance(made.callbacks, list) else [made.callbacks] if made.callbacks else []
        options = {**made.as_dict(), "callbacks": [*own, *self.trainer_defaults["callbacks"]]}
        try_trainer(self.trainer_class, options, defaults)

    def _parse_ckpt_path(self) -> None:
        """Take no settings out of a checkpoint: those of the command line hold."""

    def how_to_go_on(self) -> str:
        """Say how to resume the command after it was stopped.

        Returns:
            A sentence.
        """
        raise NotImplementedError

    def instantiate_classes(self) -> None:
        """Load the model, make the Trainer."""
        with own_classes_are_made():
            super().instantiate_classes()

    def made_so_far(self) -> Namespace:
        """Create the data module and the strategies of the subcommand, not the model or the Trainer.

        Returns:
            The subcommand's options, with these objects in place of their class paths.

        Raises:
            UserError: A class cannot be created.
        """
        with own_classes_are_made():
            return self.parser.instantiate(self.config, instantiate_groups=False)[self.subcommand]

    def _set_seed(self) -> None:
        seed = self._get(self.config, "seed_everything")
        if not isinstance(seed, bool) and seed is not None and not 0 <= seed < 2**32:
            raise UserError(f"--seed_everything={seed}: expected a whole number from 0 to {2**32 - 1}.")
        super()._set_seed()

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        """Make the Trainer, with our progress in place of Lightning's bar unless one is configured or none wanted."""
        listed = config.get("callbacks") or []
        given = [*callbacks, *(listed if isinstance(listed, list) else [listed])]
        wanted = config.get("enable_progress_bar") is not False
        if wanted and not any(isinstance(callback, ProgressBar) for callback in given):
            callbacks = [*callbacks, ShowsProgress()]
        try:
            return super()._instantiate_trainer(config, callbacks)
        except UserError:
            raise
        except Exception as error:  # Lightning and its plugins raise what they like
            words = ", ".join(word for word in EvaluateParser.words if word.startswith("--trainer."))
            raise UserError(
                f"the Trainer refuses its options{f' ({words})' if words else ''}: {reason(error)}. Change them, or "
                "leave them out for the defaults: the CPU, or the one GPU that there is."
            ) from error

    def _run_subcommand(self, subcommand: str) -> None:
        with faults_of_the_run():  # its options have been taken
            try:
                super()._run_subcommand(subcommand)
            except ValueError as error:
                if "`val_check_interval`" not in str(error):
                    raise
                interval = self.config[subcommand].trainer.val_check_interval
                raise UserError(
                    f"--trainer.val_check_interval={interval}: an epoch has fewer batches, so that there would be no "
                    "validation. Give fewer, or --trainer.check_val_every_n_epoch=null to count over all epochs."
                ) from error
            except OSError as error:  # of a library that does not say which file it was
                if self.folder is None or error.filename is not None or error.errno not in REASONS:
                    raise
                raise RunError(fault_of_writing(self.folder.path, error)) from error

    def _add_subcommands(self, parser: LightningArgumentParser, **kwargs: Any) -> None:
        parser.trains = self.trains
        known = self.subcommands()
        named = {name: skipped for name, skipped in known.items() if name in self._words} or known
        self.__dict__["subcommands"] = lambda: named
        super()._add_subcommands(parser, **kwargs)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse; a class that is named later takes no arguments over from the one named before."""
        with dropping_arguments_of_other_classes():
            super().parse_arguments(parser, args)
        _check_flags(self.config)


@contextmanager
def own_classes_are_made() -> Iterator[None]:
    """Turn an error in the code of a user's own class within a block into one sentence.

    Yields:
        Nothing.

    Raises:
        UserError: In place of any error except those that the user can correct, and those that hsdlab itself raises.
    """
    try:
        yield
    except FOR_THE_USER:
        raise
    except Exception as error:
        if isinstance(error.__cause__, FOR_THE_USER) or _is_ours(error):
            raise
        raise UserError(
            f"a class that was named cannot be made: {reason(error)} ({place(error)}). --debug shows the traceback"
        ) from error


def _is_ours(error: Exception) -> bool:
    return Path(traceback.extract_tb(error.__traceback__)[-1].filename).is_relative_to(Path(hsdlab.__file__).parent)


def _check_flags(config: Namespace) -> None:
    """Refuse what jsonargparse lets pass: a switch that is neither on nor off, an output that is no path.

    Raises:
        UserError: Naming the option.
    """
    options = config[config.subcommand]
    overwrite, output = options.get("overwrite", False), options.get("output", "runs")
    if not isinstance(overwrite, bool):
        raise UserError(f"overwrite: got {overwrite!r}; expected true or false.")
    if not output or "\0" in output or not _can_be_encoded(output):
        raise UserError(f"--output={output!r}: expected the path of a folder, such as runs/mine.")


def _can_be_encoded(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


@contextmanager
def dropping_arguments_of_other_classes() -> Iterator[None]:
    """Have jsonargparse drop all arguments of a class when a later layer names another class.

    It has no option for it: by itself it keeps those that the new class has too, so that HSD would silently
    take SkipDecode's min_exit.

    Yields:
        Nothing.
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
    """Fill in all defaults of a configuration.

    Args:
        parser: That of the subcommand.
        config: The options of the subcommand.

    Returns:
        The options as plain data, without the output folder, `overwrite` and `config`; they run again as they are.
    """
    resolved = yaml.safe_load(parser.dump(config, skip_unset=False, format="yaml"))
    return {name: value for name, value in resolved.items() if name not in ("output", "overwrite", "config")}
