"""The command line of `evaluate.py`: decode, compare, calibrate and tune strategies, measure speed and layers.

Long, because LightningCLI is one class: what each subcommand checks, and in which order, stands together.
"""

import copy
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only
from rich.console import Console

from hsdlab.cli.exits import run_or_exit
from hsdlab.cli.precision import check_precision
from hsdlab.cli.report import REPORT, report_command
from hsdlab.cli.stops import WITHOUT_RESULT
from hsdlab.cli.subcommands import SubcommandCLI, resolved_config
from hsdlab.cli.trainer_flags import check_enough
from hsdlab.data import Example
from hsdlab.data.base import Split
from hsdlab.data.sample import sample_batches
from hsdlab.errors import faults_of_the_run
from hsdlab.models import weights_fingerprint
from hsdlab.models.generation import fixed_length, greedy
from hsdlab.models.identity import config_hash, tokenizer_hash, weights_hash
from hsdlab.modules import DecodeModule, load_decode_module
from hsdlab.modules.decode import check_decoding
from hsdlab.program import typed
from hsdlab.records.draft_tuning import DraftTuningResult
from hsdlab.records.identity import IDENTITY
from hsdlab.records.predictions import PredictionFile, check_same_examples
from hsdlab.records.provenance import run_info
from hsdlab.records.run_folder import METRICS_FILE, RunFolder, fingerprint, prediction_file, write_json, write_yaml
from hsdlab.records.strategy import StrategyConfig
from hsdlab.reporting import calibration, draft_tuning, tensorboard, tuning
from hsdlab.reporting.comparison import print_comparison
from hsdlab.reporting.tables import console
from hsdlab.runs.bench import check_bench
from hsdlab.runs.bench_cells import BenchOptions, bench_cells
from hsdlab.runs.calibrate import check_calibration
from hsdlab.runs.draft_options import DraftTuningOptions, check_draft_tuning, check_goal, trial_drafts
from hsdlab.runs.own_code import own_code
from hsdlab.runs.rehearsal import check_options_fit, own_faults, rehearse
from hsdlab.runs.strategies import baseline_first, prediction_files, strategy_result
from hsdlab.runs.test import write_result
from hsdlab.runs.trainer import DecodingTrainer
from hsdlab.runs.tunable import check_tuning
from hsdlab.strategies import SkipStrategy

RESUMABLE = ("validate", "test", "predict", "compare", "calibrate", "tune")
ON_VALIDATION = ("validate", "calibrate", "tune", "inspect")
"""The subcommands that read the validation split; see `EvaluateCLI._split` for the others."""
COUNT_TOKENS = "count_tokens"
"""The subcommand that decodes nothing."""
BY_DEFAULT = {"compare": ("FullDepth", "HSD", "SkipDecode", "CALM"), "bench": ("HSD", "SkipDecode", "CALM")}
"""The strategies of a subcommand that is given none, with their own defaults; `bench` measures full depth anyway."""
UNDER_ONE_STRATEGY = ("validate", "test", "predict")
"""The subcommands that decode under the one strategy of `--skip`."""


DESCRIPTION = (
    "Decode text with fewer layers per token and compare the strategies. Besides the subcommands below, "
    "`report RUN …` draws the tables and pictures of finished runs again, without a model."
)


class EvaluateCLI(SubcommandCLI):
    """LightningCLI for decoding: validate, test, predict, compare, calibrate, tune, bench, inspect, count_tokens.

    Args:
        args: The command line; by default that of the process.
    """

    model: DecodeModule
    trainer: DecodingTrainer
    folder: RunFolder

    def __init__(self, args: Sequence[str] | None = None) -> None:
        super().__init__(
            load_decode_module,
            DecodingTrainer,
            {
                "devices": 1,
                "logger": False,
                "enable_checkpointing": False,
                "enable_model_summary": False,
            },
            DESCRIPTION,
            args,
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
            "calibrate": {"model", "datamodule", "run"},
            "tune": {"model", "datamodule", "run"},
            "bench": {"model", "datamodule", "run"},
            "inspect": {"model", "datamodule", "run"},
            COUNT_TOKENS: {"model", "datamodule"},
        }

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand in UNDER_ONE_STRATEGY:
            parser.callback_keys.append("skip")
            parser.add_lightning_class_args(SkipStrategy, "skip", subclass_mode=True)
            parser.set_defaults({"skip": {"class_path": "hsdlab.FullDepth"}})
        if subcommand in ("validate", "test"):
            parser.set_defaults({"verbose": False})  # Lightning's table of all figures; `_write_result` prints tables
        if subcommand in BY_DEFAULT:
            parser.set_defaults({"strategies": [{"class_path": f"hsdlab.{name}"} for name in BY_DEFAULT[subcommand]]})
        parser.set_defaults({"data": {"class_path": "hsdlab.data.DataFolder"}})
        parser.add_argument("--output", type=str, default=f"runs/{subcommand}", help="Folder for all that is written.")
        parser.add_argument(
            "--overwrite",
            action="store_true",
            help="Start over and replace the results in the output folder. Without it an unfinished run is resumed.",
        )
        parser.link_arguments("output", "trainer.default_root_dir")
        parser.link_arguments("output", "model.predictions", compute_fn=_predictions_file)
        return parser

    def before_instantiate_classes(self) -> None:
        """Refuse what can be refused before the model is loaded: folder, strategies, data."""
        config = self.config[self.subcommand]
        self.output = Path(config.output)
        resolved = resolved_config(self._parser(self.subcommand), config)
        made = self.made_so_far()
        self.check_trainer(made.trainer)
        is_first = rank_zero_only.rank == 0
        self.folder = RunFolder(self.output, self.subcommand, resolved, config.overwrite, is_first=is_first)
        self.resumes = is_first and self.folder.check(can_resume=self.subcommand in RESUMABLE)
        self.run_info = run_info(config.seed_everything, resolved, self.subcommand)
        check_decoding(config.model)
        strategies = self._listed(made)
        if strategies is not None:
            baseline_first(strategies)
        with faults_of_the_run(), own_faults(made.data):
            made.data.check(self._split(made), for_training=self.subcommand == COUNT_TOKENS)
            examples = made.data.examples(self._split(made))
        check_enough(config.trainer.as_dict(), self.subcommand, math.ceil(len(examples) / made.data.batch_size))
        if self.subcommand == "bench":
            check_bench(made.strategies, _bench_options(made), len(examples))
        if self.subcommand == "calibrate":
            check_calibration(
                made.strategies,
                **{name: made[name] for name in ("tolerance", "error", "bound", "metric")},
                computed=config.model.metrics,
                examples=[example.id for example in examples],
                batch_size=made.data.batch_size,
            )
        if self.subcommand == "tune":
            check_goal(made.lossless, made.max_loss, made.speedup, made.draft_lengths, made.draft_vocabularies)
            fitting = {
                "max_new_tokens": config.model.max_new_tokens,
                "examples": [example.id for example in examples],
            }
            if made.lossless:
                check_draft_tuning(_draft_options(made), decoding=config.model, **fitting)
            else:
                check_tuning(
                    **{name: made[name] for name in ("classes", "max_loss", "speedup", "metric", "trials")},
                    first=made.first or (),
                    computed=config.model.metrics,
                    **fitting,
                )
        self.run_info = replace(self.run_info, examples=fingerprint(repr(example) for example in examples))
        if self.resumes:
            with faults_of_the_run():
                self._go_on(examples, self._prediction_files(strategies))

    def _prediction_files(self, strategies: Sequence[SkipStrategy] | None) -> Sequence[Path]:
        """Return the files of the predictions that are to be made; for `tune`, those that there are."""
        if self.subcommand == "tune":
            return sorted(self.output.glob("predictions/*.jsonl"))
        return [prediction_file(self.output)] if strategies is None else prediction_files(self.output, strategies)

    def _split(self, made: Namespace) -> Split:
        """Return the split that the subcommand reads."""
        if self.subcommand == "predict":
            return made.data.predict_split
        if self.subcommand == COUNT_TOKENS:
            return "train"
        return "validation" if self.subcommand in ON_VALIDATION else "test"

    def _strategies(self, made: Namespace) -> list[SkipStrategy]:
        """Return the strategies that the subcommand is given, as a list or alone."""
        return self._listed(made) or ([made.skip] if "skip" in made else [])

    def _listed(self, made: Namespace) -> list[SkipStrategy] | None:
        """Return the strategies that a subcommand lists, for `tune`, which lists classes too, the first to try."""
        return made.get("first" if self.subcommand == "tune" else "strategies")

    def _go_on(self, examples: Sequence[Example], files: Sequence[Path]) -> None:
        """Refuse predictions for other data; say how much is done."""
        current = {example.id: example for example in examples}
        done = 0
        for file in files:
            records = PredictionFile(file).records()
            known = [current[record.id] for record in records if record.id in current]
            check_same_examples(records, ((each.id, each.source, each.references) for each in known))
            done += len(records)
        self.folder.check_unchanged(self.run_info, "examples")  # those without a prediction
        total = len(examples) * len(files)
        console = Console()
        if self.subcommand == "tune":  # what is still to be decoded shows in the search
            text = f"Resuming the run in {self.output}: {done} predictions are done."
        elif done < total:
            most = "at most " if self.subcommand == "calibrate" else ""  # it may end before its last setting
            text = f"Resuming the run in {self.output}: {done} of {most}{total} predictions are done."
        else:
            text = (
                f"The run in {self.output} is finished, all {total} predictions are done: its figures again. "
                "To decode again give --overwrite."
            )
        console.print(text, highlight=False, soft_wrap=True)
        self.folder.warn_of_changes(self.run_info, console)

    def after_instantiate_classes(self) -> None:
        """Refuse what does not fit the model or the device, and rehearse; only then begin to write."""
        made = self.config_init[self.subcommand]
        check_precision(self.trainer, self.config[self.subcommand].trainer.precision)
        if self.subcommand == COUNT_TOKENS:
            self.open_output()
            return
        strategies: list[SkipStrategy] = self._strategies(made)
        if made.get("lossless"):
            strategies = [*strategies, *trial_drafts(_draft_options(made))]
        prompt = self.first_prompt()  # refuses lengths; a schedule is as long as max_new_tokens
        for strategy in strategies:
            strategy.setup(self.trainer, self.model, self.subcommand)  # refuses a second one
            with own_faults(strategy), strategy.applied_to(self.model.model, max_new_tokens=self.model.max_new_tokens):
                pass
        self.rehearse(prompt, strategies)
        self.open_output()

    def first_prompt(self) -> list[int]:
        """Encode the prompts that the subcommand reads.

        Returns:
            Token ids of the first one, not padded; for `bench` and `inspect`, of the first in a batch.

        Raises:
            UserError: An option, a length or a template with which no prompt can be decoded.
        """
        check_options_fit(self.model)
        return self._a_prompt(self.config_init[self.subcommand])

    def rehearse(self, prompt: list[int], strategies: Sequence[SkipStrategy]) -> None:
        """Decode a little with all that the run will need, so that what would fail later fails now.

        Args:
            prompt: Token ids.
            strategies: Those of the run; empty for the subcommands that take none.
        """
        self.model.to(self.trainer.strategy.root_device)
        scores = self.subcommand not in ("bench", "inspect")
        rehearse(self.model, prompt, strategies, self._form(), scores)

    def own_code(self) -> dict[str, str]:
        """Hash the code of the user that the run depends on.

        Returns:
            Each of the user's own classes, and each file that an option of a strategy names, to its hash.
        """
        made, config = self.config_init[self.subcommand], self.folder.config
        strategies = self._strategies(made)
        named = {name: config.get(name) for name in ("strategies", "skip", "first")}
        return own_code([*strategies, self.datamodule, *self.trainer.callbacks], named)

    def _form(self) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
        """Return what the subcommand makes of the options of decoding."""
        return {"bench": fixed_length, "inspect": greedy}.get(self.subcommand, dict)

    def _a_prompt(self, made: Namespace) -> list[int]:
        """Encode the prompts that the subcommand reads, so that a template that fails does so now; return the first."""
        if self.subcommand == "bench":
            first, *_ = bench_cells(self.model, self.datamodule, _bench_options(made))
            return first.batches[0].prompt(0)
        self.datamodule.connect_to(self.model)
        split = self._split(made)
        with faults_of_the_run():
            if self.subcommand == "inspect":
                batch, *_ = sample_batches(self.datamodule, "validation", made.examples)
                return batch["input_ids"][0].tolist()
            return self.datamodule.first_prompt(split)

    def open_output(self) -> None:
        """Refuse to go on with another model; make the folder and write config.yaml and run.json."""
        generation = self.model.generation(self._form())
        self.run_info = replace(
            self.run_info,
            weights=weights_fingerprint(self.model.model),
            weights_hash=weights_hash(self.model.model),
            model_config=config_hash(self.model.model),
            tokenizer=tokenizer_hash(self.model.tokenizer),
            own_code=self.own_code(),
            generation=generation.record(),
        )
        self.model.resume = True  # a new run's folder holds nothing that it would read
        self.folder.check_unchanged(self.run_info, *IDENTITY)
        self.run_info = self.folder.open(self.run_info)
        if rank_zero_only.rank == 0 and self.subcommand != COUNT_TOKENS:
            Console().print(generation.sentence(), highlight=False, markup=False, soft_wrap=True)

    def how_to_go_on(self) -> str:
        """Say whether what has finished is kept."""
        if self.folder is None or not self.folder.has_results():
            return WITHOUT_RESULT
        if self.subcommand in RESUMABLE:
            return "The same command resumes it: what has finished is kept."
        return "The same command with --overwrite starts over."

    def compare(self, **kwargs: Any) -> None:
        """Run `DecodingTrainer.compare` with the provenance of this run.

        Args:
            **kwargs: The arguments of `DecodingTrainer.compare` but `run`.
        """
        self.trainer.compare(**kwargs, run=self.run_info)

    def calibrate(self, **kwargs: Any) -> None:
        """Run `DecodingTrainer.calibrate` with the provenance of this run; write the chosen setting to calibrated.yaml.

        Args:
            **kwargs: The arguments of `DecodingTrainer.calibrate` but `run`.
        """
        found = self.trainer.calibrate(**kwargs, run=self.run_info)
        if rank_zero_only.rank != 0:
            return
        why = calibration.guarantee(found)
        command = self._write_choice("calibrated.yaml", found.chosen.strategy, why, "runs/calibrated")
        text = f"In {self.output}: the report in calibration.md, .json and .png, the texts in predictions/. Decode so: "
        Console().print(text + command, highlight=False, soft_wrap=True)

    def tune(self, **kwargs: Any) -> None:
        """Run `DecodingTrainer.tune` with the provenance of this run; write the chosen setting to strategy.yaml.

        Args:
            **kwargs: The arguments of `DecodingTrainer.tune` but `run`.
        """
        found = self.trainer.tune(**kwargs, run=self.run_info)
        if rank_zero_only.rank != 0:
            return
        if isinstance(found, DraftTuningResult):
            why, picture = draft_tuning.summary(found), draft_tuning.PICTURE
        else:
            why, picture = tuning.summary(found), tuning.PICTURE
        command = self._write_choice("strategy.yaml", found.chosen_row.strategy, why, "runs/tuned")
        text = f"In {self.output}: the report in tuning.md and .json, {picture}, the texts in predictions/. Decode so: "
        Console().print(text + command, highlight=False, soft_wrap=True)

    def _write_choice(self, name: str, chosen: StrategyConfig, why: str, output: str) -> str:
        """Write a config that decodes the test split as this run would with what it chose; return the command.

        The whole split: a limit on the examples of this run is not one of the test.
        """
        path = self.output / name
        parts = ("seed_everything", "trainer", "model", "data")
        config = {part: copy.deepcopy(self.folder.config[part]) for part in parts}
        config["data"].get("init_args", {}).pop("limit", None)
        command = f"{typed('test')} --config {path} --output {output}"
        write_yaml(path, config | {"skip": chosen.as_config()}, why, command)
        return command

    def bench(self, **kwargs: Any) -> None:
        """Run `DecodingTrainer.bench` with the provenance of this run.

        Args:
            **kwargs: The arguments of `DecodingTrainer.bench` but `run`.
        """
        self.trainer.bench(**kwargs, run=self.run_info)

    def inspect(self, **kwargs: Any) -> None:
        """Run `DecodingTrainer.inspect` with the provenance of this run.

        Args:
            **kwargs: The arguments of `DecodingTrainer.inspect` but `run`.
        """
        self.trainer.inspect(**kwargs, run=self.run_info)

    def after_test(self) -> None:
        """Write the logged figures."""
        if rank_zero_only.rank == 0:
            figures = {name: float(value) for name, value in self.trainer.callback_metrics.items()}
            write_json(self.output / METRICS_FILE, figures)
            self._write_result(figures)
        self.after_predict()

    after_validate = after_test

    def _write_result(self, figures: dict[str, float]) -> None:
        """Print the strategy's tables; write result.json, and the run of TensorBoard that `compare` would write."""
        strategy = self.config_init[self.subcommand].skip
        result = strategy_result(self.model, strategy, figures, prediction_file(self.output))
        print_comparison(write_result(replace(result, run=self.run_info), self.output), console())
        rank_zero_info(f"In TensorBoard: {tensorboard.command(self.output / tensorboard.FOLDER)}")

    def after_predict(self) -> None:
        """Say where the results are."""
        rank_zero_info(f"Results in {self.output}/")


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line; an error that is the user's to mend ends it with one message, not a traceback.

    Args:
        args: The command line; by default that of the process.
    """
    run_or_exit(_command, args)


def _command(args: list[str] | None) -> None:
    """Run a subcommand; `report`, which needs no model and no data, has a parser of its own."""
    words = sys.argv[1:] if args is None else args
    if words[:1] == [REPORT]:
        report_command(words[1:])
    else:
        EvaluateCLI(args)


def _bench_options(made: Namespace) -> BenchOptions:
    return BenchOptions(**{each.name: made[each.name] for each in fields(BenchOptions)})


def _draft_options(made: Namespace) -> DraftTuningOptions:
    return DraftTuningOptions(
        **{name: made[name] for name in ("classes", "trials", "examples", "decodes")},
        first=made.first or (),
        lengths=made.draft_lengths,
        vocabularies=made.draft_vocabularies,
    )


def _predictions_file(output: str) -> str:
    return str(prediction_file(Path(output)))
