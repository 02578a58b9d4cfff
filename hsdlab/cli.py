"""The command line of `evaluate.py`: decode, compare the strategies, measure speed and layers."""

import inspect
import json
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import yaml
from jsonargparse import Namespace, _typehints
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException

import hsdlab.data
import hsdlab.strategies  # noqa: F401  their names are short names on the command line
from hsdlab.data import GenerationDataModule
from hsdlab.modules import DecodeModule, load_decode_module
from hsdlab.reporting import run_provenance
from hsdlab.strategies import ConfidenceStrategy, ScheduledStrategy, SkipStrategy
from hsdlab.trainer import DecodingTrainer, baseline_first

WRITTEN = (
    *("config.yaml", "run.json", "metrics.json", "predictions*.jsonl", "predictions/*.jsonl"),
    *("comparison.md", "comparison.json", "pareto.png", "bench.json", "bench.md"),
    *("inspect.json", "inspect.md", "inspect.png"),
)
"""What a run writes into its output folder, and `--overwrite` removes from it."""


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
        sys.stderr.write(f"error: {message}\nFor the options and their meaning add --help\n")
        sys.exit(2)


class EvaluateCLI(LightningCLI):
    """LightningCLI for decoding: validate, test, predict, compare, bench, inspect.

    Args:
        args: The command line; by default that of the process.
    """

    model: DecodeModule
    trainer: DecodingTrainer

    def __init__(self, args: Sequence[str] | None = None) -> None:
        super().__init__(
            load_decode_module,
            GenerationDataModule,
            subclass_mode_data=True,
            trainer_class=DecodingTrainer,
            trainer_defaults={
                "devices": 1,
                "logger": False,
                "enable_checkpointing": False,
                "enable_model_summary": False,
            },
            parser_class=EvaluateParser,
            parser_kwargs={"description": "Decode text with fewer layers per token and compare the strategies."},
            save_config_callback=None,  # it wants a logger's folder; ours is written beside the results
            seed_everything_default=0,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            args=None if args is None else list(args),
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return the subcommands, methods of the Trainer, and their parameters that are no options."""
        checkpoint = {"ckpt_path", "weights_only"}
        return {
            "validate": {"model", "dataloaders", "datamodule", *checkpoint},
            "test": {"model", "dataloaders", "datamodule", *checkpoint},
            "predict": {"model", "dataloaders", "datamodule", "return_predictions", *checkpoint},
            "compare": {"model", "datamodule", "run"},
            "bench": {"model", "datamodule", "run"},
            "inspect": {"model", "datamodule", "run"},
        }

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if "strategies" not in self._subcommand_method_arguments[subcommand] and subcommand != "inspect":
            parser.callback_keys.append("skip")
            parser.add_lightning_class_args(SkipStrategy, "skip", subclass_mode=True)
            parser.set_defaults({"skip": {"class_path": "hsdlab.FullDepth"}})
        parser.add_argument("--output", type=str, default=f"runs/{subcommand}", help="Folder for all that is written.")
        parser.add_argument(
            "--overwrite",
            action="store_true",
            help="Replace the results of an earlier run in the output folder.",
        )
        parser.link_arguments("output", "trainer.default_root_dir")
        parser.link_arguments("output", "model.predictions", compute_fn=_predictions_file)
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse; a class that is named later takes no arguments over from the one named before."""
        with dropping_arguments_of_other_classes():
            super().parse_arguments(parser, args)

    def before_instantiate_classes(self) -> None:
        """Refuse what can be refused before the model is loaded: folder, strategies, data."""
        config = self.config[self.subcommand]
        self.output = Path(config.output)
        if rank_zero_only.rank == 0:
            _check_free(self.output, config.overwrite)
        made = self.parser.instantiate(self.config, instantiate_groups=False)[self.subcommand]
        if "strategies" in made:
            baseline_first(made.strategies)
        made.data.prepare_data()
        made.data.examples("validation" if self.subcommand in ("validate", "inspect") else "test")

    def after_instantiate_classes(self) -> None:
        """Refuse a strategy that does not fit the model; only then begin to write."""
        made = self.config_init[self.subcommand]
        for strategy in made.get("strategies") or ([made.skip] if "skip" in made else []):
            strategy.setup(self.trainer, self.model, self.subcommand)  # refuses a second one
            with strategy.applied_to(self.model.model, max_new_tokens=self.model.max_new_tokens):
                pass
        self.open_output()

    def open_output(self) -> None:
        """Make the folder, remove an earlier run's results, write config.yaml and run.json."""
        config = resolved_config(self._parser(self.subcommand), self.config[self.subcommand])
        self.run_info = run_provenance(config["seed_everything"], config)
        if rank_zero_only.rank != 0:
            return
        self.output.mkdir(parents=True, exist_ok=True)
        for file in (file for pattern in WRITTEN for file in self.output.glob(pattern)):
            file.unlink()
        header = f"# python evaluate.py {self.subcommand} --config {self.output / 'config.yaml'}\n"
        text = header + yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
        (self.output / "config.yaml").write_text(text, encoding="utf-8")
        _write_json(self.output / "run.json", self.run_info)

    def compare(self, **kwargs: Any) -> None:
        """Run `DecodingTrainer.compare` with the provenance of this run."""
        self.trainer.compare(**kwargs, run=self.run_info)

    def bench(self, **kwargs: Any) -> None:
        """Run `DecodingTrainer.bench` with the provenance of this run."""
        self.trainer.bench(**kwargs, run=self.run_info)

    def inspect(self, **kwargs: Any) -> None:
        """Run `DecodingTrainer.inspect` with the provenance of this run."""
        self.trainer.inspect(**kwargs, run=self.run_info)

    def after_test(self) -> None:
        """Write the logged figures."""
        if rank_zero_only.rank == 0:
            figures = {name: float(value) for name, value in self.trainer.callback_metrics.items()}
            _write_json(self.output / "metrics.json", figures)
        self.after_predict()

    after_validate = after_test

    def after_predict(self) -> None:
        """Say where the results are."""
        rank_zero_info(f"Results in {self.output}/")


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line; an error that is the user's to mend ends it with one message, not a traceback.

    Args:
        args: The command line; by default that of the process.
    """
    # Lightning 2.6 calls what torch 2.13 deprecates; nothing that the user could mend.
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec", category=FutureWarning)
    try:
        EvaluateCLI(args)
    except Exception as error:
        if not is_for_the_user(error):
            raise
        sys.exit(f"error: {error}")


def is_for_the_user(error: Exception) -> bool:
    """Tell files, network and Trainer options, and what hsdlab itself refuses, from everything unforeseen."""
    if isinstance(error, OSError | MisconfigurationException):
        return True
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    raised_in = "" if traceback is None else traceback.tb_frame.f_globals.get("__name__", "")
    return isinstance(error, ValueError | RuntimeError) and raised_in.startswith("hsdlab.")


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


def _names_of_subclasses(base: Any) -> Iterator[str]:
    for subclass in base.__subclasses__():
        if not inspect.isabstract(subclass):
            yield subclass.__name__
        yield from _names_of_subclasses(subclass)


def _predictions_file(output: str) -> str:
    return str(Path(output) / "predictions.jsonl")


def _check_free(folder: Path, overwrite: bool) -> None:
    """Refuse a folder that holds something, unless the results in it may be replaced."""
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"--output={folder} is a file; expected a folder.")
    if overwrite or not folder.exists() or not any(folder.iterdir()):
        return
    raise FileExistsError(
        f"The output folder {folder} is not empty. Give another one with --output, or --overwrite to replace "
        "the results in it."
    )


def resolved_config(parser: LightningArgumentParser, config: Namespace) -> dict[str, Any]:
    """Return the configuration with all defaults filled in, without the folder: it runs again as it is."""
    resolved = yaml.safe_load(parser.dump(config, skip_unset=False, format="yaml"))
    return {name: value for name, value in resolved.items() if name not in ("output", "overwrite", "config")}


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False, default=str) + "\n", encoding="utf-8")
