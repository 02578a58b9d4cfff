"""The command line of `train.py`: fine-tune a model, compute its validation loss, train an exit classifier for it.

Long, because LightningCLI is one class: what each subcommand checks, and in which order, stands together.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jsonargparse import Namespace, set_parsing_settings
from jsonargparse.typing import PositiveInt
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only
from rich.console import Console
from torch import Tensor

from hsdlab.cli.exits import Finished, run_or_exit
from hsdlab.cli.precision import check_precision
from hsdlab.cli.stops import WITHOUT_RESULT
from hsdlab.cli.subcommands import SubcommandCLI, resolved_config
from hsdlab.cli.training_modules import MODULES, TrainingTrainer, load_finetune_module
from hsdlab.decoding.families import plain_model
from hsdlab.errors import RunError, UserError, faults_of_the_run
from hsdlab.models.generation import generation
from hsdlab.models.identity import config_hash, tokenizer_hash, weights_hash
from hsdlab.modules import Checkpoints, FinetuneModule
from hsdlab.modules.checkpoint_files import CheckpointFiles, read_checkpoint
from hsdlab.modules.checkpoints import BEST, LAST, state_in
from hsdlab.modules.event_files import continue_events
from hsdlab.modules.frozen_exit import FrozenExitModule
from hsdlab.modules.lora import LoRA
from hsdlab.modules.trained_weights import check_weights
from hsdlab.program import typed
from hsdlab.records.exit_quality import ExitQuality
from hsdlab.records.identity import IDENTITY
from hsdlab.records.provenance import RunInfo, run_info
from hsdlab.records.run_folder import RunFolder, fingerprint
from hsdlab.reporting.exit_quality import print_exit_quality, write_exit_quality
from hsdlab.reporting.tensorboard import add_picture
from hsdlab.runs.own_code import own_code
from hsdlab.strategies import SkipStrategy

CHECKPOINTS = "checkpoints"
LAST_CHECKPOINT = Path(CHECKPOINTS, LAST)


class TrainCLI(SubcommandCLI):
    """LightningCLI for training: fit, validate, fit_exit_classifier, fit_exit_router.

    `fit` writes into --output: config.yaml (runs again as it is), run.json (what it was made with), checkpoints/
    (best.ckpt by val/loss, by val/skip_loss if it trains skip-aware, by val/supervised_loss with deep supervision;
    last.ckpt to go on with), the logger's files, and model/, the best weights for `load_model`, transformers or peft.
    `fit_exit_classifier` and `fit_exit_router` write exit_classifier.safetensors or exit_router.safetensors in place of
    model/, and how good it is as .json and .png.

    Args:
        args: The command line; by default that of the process.
    """

    model: FinetuneModule | FrozenExitModule
    trainer: TrainingTrainer
    trainer_defaults: dict[str, Any]
    folder: RunFolder
    run_info: RunInfo

    def __init__(self, args: Sequence[str] | None = None) -> None:
        set_parsing_settings(subclasses_disabled=[LoRA])  # its options themselves, as configs have them
        super().__init__(
            load_finetune_module,
            TrainingTrainer,
            {
                "max_epochs": 3,
                "gradient_clip_val": 1.0,
                "devices": 1,
                "log_every_n_steps": 10,
                "enable_model_summary": False,
            },
            "Fine-tune a model, or train an exit classifier for it.",
            args,
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return the subcommands, methods of the Trainer, and their parameters that are no options."""
        return {
            "fit": {"model", "train_dataloaders", "val_dataloaders", "datamodule", "weights_only"},
            "validate": {"model", "dataloaders", "datamodule", "weights_only"},
            "fit_exit_classifier": {"model", "datamodule"},
            "fit_exit_router": {"model", "datamodule"},
        }

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        self._model_class = MODULES[subcommand]
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        parser.set_defaults({"data": {"class_path": "hsdlab.data.DataFolder"}})
        if subcommand in ("fit", "validate"):
            parser.callback_keys.append("skip")
            parser.add_lightning_class_args(SkipStrategy, "skip", subclass_mode=True)
            parser.set_defaults({"skip": {"class_path": "hsdlab.FullDepth"}})
        if subcommand == "validate":
            parser.set_defaults({"trainer.logger": False})
            return parser
        parser.add_argument("--output", type=str, default=f"runs/{subcommand}", help="Folder for all that is written.")
        parser.add_argument(
            "--checkpoint_every",
            type=PositiveInt,
            default=100,
            help="Write last.ckpt every so many steps. --ckpt_path=last resumes from it.",
        )
        parser.add_argument(
            "--overwrite",
            action="store_true",
            help="Start over. Of the output folder, only what runs wrote is removed.",
        )
        parser.link_arguments("output", "trainer.default_root_dir")
        return parser

    def before_instantiate_classes(self) -> None:
        """Refuse what can be refused before the model is loaded: folder, data; add the checkpoints."""
        config = self.config[self.subcommand]
        made = self.made_so_far()
        data = made.data
        self.check_trainer(made.trainer)
        if self.subcommand != "validate":
            self.output = Path(config.output)
            self._check_folder(config)
            monitor = "val/loss"
            if config.model.get("deep_supervision"):
                monitor = "val/supervised_loss"
            elif config.model.get("skip_strategies"):
                monitor = "val/skip_loss"
            self.checkpoints = Checkpoints(self.output / CHECKPOINTS, config.checkpoint_every, monitor)
            callbacks = [*self.trainer_defaults["callbacks"], self.checkpoints]
            self.trainer_defaults = {**self.trainer_defaults, "callbacks": callbacks}
        self.checkpoint = self._checkpoint(config)
        splits = ("validation",) if self.subcommand == "validate" else ("train", "validation")
        with faults_of_the_run():
            data.check(*splits, for_training=True)
            if self.subcommand != "validate":
                examples = [example for split in splits for example in data.examples(split)]
                self.run_info = replace(self.run_info, examples=fingerprint(repr(example) for example in examples))
                self.folder.check_unchanged(self.run_info, "examples")

    def _check_folder(self, config: Namespace) -> None:
        """Refuse a folder with results, unless the run in it goes on."""
        resolved = resolved_config(self._parser(self.subcommand), config)
        resolved |= {"ckpt_path": None if _goes_on(config) else config.ckpt_path}
        self.run_info = run_info(config.seed_everything, resolved, self.subcommand)
        if config.overwrite and _goes_on(config):
            raise UserError(
                f"--overwrite removes what the run in {self.output} has written, and --ckpt_path={config.ckpt_path} "
                "resumes it: give one of them."
            )
        is_first = rank_zero_only.rank == 0
        self.folder = RunFolder(self.output, self.subcommand, resolved, config.overwrite, "train.py", is_first)
        if is_first:
            hint = ", or resume the run in it: --ckpt_path=last"
            self.folder.check(can_resume=_goes_on(config), goes_on=_goes_on(config), otherwise=hint)

    def after_instantiate_classes(self) -> None:
        """Refuse what does not fit the model or the device; only then begin to write."""
        self.config_init[self.subcommand].ckpt_path = self.checkpoint
        self.trainer.strategy.checkpoint_io = CheckpointFiles()
        check_precision(self.trainer, self.config[self.subcommand].trainer.precision)
        self.datamodule.connect_to(self.model)
        with faults_of_the_run():
            for split in ("validation",) if self.subcommand == "validate" else ("train", "validation"):
                self.datamodule.first_prompt(split)  # what a template or tokenizer refuses
        if "skip" in self.config_init[self.subcommand]:
            skip = self.config_init[self.subcommand].skip
            with skip.applied_to(self.model.model, max_new_tokens=self.model.max_new_tokens):
                pass
            self.model.check_callbacks(self.trainer.callbacks)
        if self.subcommand == "validate" or self.trainer.fast_dev_run:
            return
        self._open_folder()
        if self.checkpoint is not None:
            events = state_in(read_checkpoint(self.checkpoint, mmap=True), self.checkpoint)["events"]
            continue_events(self.trainer.loggers, events, writes=rank_zero_only.rank == 0)

    def _open_folder(self) -> None:
        """Refuse to go on with another model, or with a run that is finished; begin to write."""
        model = plain_model(self.model.model)
        self.run_info = replace(
            self.run_info,
            weights_hash=weights_hash(self.model.model, without="lora_"),
            model_config=config_hash(model),
            tokenizer=tokenizer_hash(self.model.tokenizer),
            generation=generation(model, {}, self.model.tokenizer).record(),
            own_code=own_code([*self._strategies(), self.datamodule, *self.trainer.callbacks], {}),
        )
        self.folder.check_unchanged(self.run_info, *IDENTITY)
        anew = False
        if self.folder.before is not None:
            self.folder.warn_of_changes(self.run_info, Console())
            if self.folder.is_finished():
                raise Finished(
                    f"The run in {self.output} is finished. To train again give --overwrite or another folder."
                )
            anew = self.checkpoint is None
            if anew and (start := self.folder.before.config.get("ckpt_path")):
                raise FileExistsError(
                    f"There is no checkpoint in {self.output} to resume from. Start over as the run in it did: "
                    f"--overwrite --ckpt_path={start}"
                )
            if anew:
                rank_zero_info(f"There is no checkpoint in {self.output} yet: the training starts over.")
        self.run_info = self.folder.open(self.run_info, ("lightning_logs",), anew)

    def _strategies(self) -> list[object]:
        """Return the strategies that the model is trained with, and that of its validation."""
        mixture = getattr(self.model, "mixture", None)
        made = self.config_init[self.subcommand]
        return [*(mixture.strategies if mixture is not None else []), *([made.skip] if "skip" in made else [])]

    def has_results(self) -> bool:
        """Tell whether a training that failed has made a step."""
        return self.trainer.global_step > 0 if "trainer" in vars(self) else super().has_results()

    def how_to_go_on(self) -> str:
        """Say what there is to go on with after the command was stopped."""
        if self.folder is None or not self.folder.has_results():
            return WITHOUT_RESULT
        if (self.output / LAST_CHECKPOINT).exists():
            return f"Resume from the checkpoint in {self.output}: the same command with --ckpt_path=last."
        return (
            "There is no checkpoint yet (see --checkpoint_every): the same command with --ckpt_path=last starts "
            f"over in {self.output}."
        )

    def after_fit(self) -> None:
        """Export the best weights (the last ones, if there was no validation)."""
        assert isinstance(self.model, FinetuneModule)
        if self._is_trial():
            return
        if rank_zero_only.rank == 0:
            self._load_best()
            self.model.export(self.output / "model")
        self.folder.finish()
        rank_zero_info(f"Decode with it: {typed('test')} --model.name={self.output / 'model'} ...")

    def after_fit_exit_classifier(self) -> None:
        """Write the best classifier, and how good it is on the validation split, layer by layer."""
        self._after_frozen("--skip=CALM --skip.measure=classifier --skip.classifier={file}")

    def after_fit_exit_router(self) -> None:
        """Write the best router, and how good it is on the validation split, layer by layer."""
        self._after_frozen("--skip=LearnedExit --skip.router={file}")

    def _after_frozen(self, use: str) -> None:
        """Write the trained network and its quality; `use` are the options that decode with the file."""
        assert isinstance(self.model, FrozenExitModule)
        if self._is_trial():
            return
        self._load_best()
        self.trainer.validate(self.model, datamodule=self.datamodule, verbose=False)  # in all processes
        file = self.output / f"{self.model.network.replace(' ', '_')}.safetensors"
        if rank_zero_only.rank == 0:
            self.model.export(file)
            figures = {name: _numbers(values) for name, values in self.model.quality.items()}
            quality = ExitQuality(
                **figures, network=self.model.network, layers=tuple(self.model.layers), run=self.run_info
            )
            picture = write_exit_quality(quality, self.output)
            print_exit_quality(quality, Console())
            for logger in self.trainer.loggers:
                if isinstance(logger, TensorBoardLogger):
                    add_picture(logger.experiment, file.stem, picture)
                    logger.experiment.flush()
        self.folder.finish()
        rank_zero_info(f"Decode with it: {typed('test')} {use.format(file=file)} ...")

    def _checkpoint(self, config: Namespace) -> Path | None:
        """Return the checkpoint that --ckpt_path names, having read it; None where there is none to go on from."""
        word = config.ckpt_path
        if word is None:
            return None
        if word in ("last", "best") and self.subcommand == "validate":
            raise UserError(f"--ckpt_path={word}: validate has no run of its own; give the path of a checkpoint.")
        names = {"last": LAST, "best": BEST}
        path = self.output / CHECKPOINTS / names[word] if word in names else Path(word)
        if word == "last" and not path.exists():
            return None
        with faults_of_the_run():
            read_checkpoint(path, mmap=True)
        return path

    def _is_trial(self) -> bool:
        """Tell whether the Trainer only tried its code, which gives no result; refuse to export an untrained model.

        Raises:
            RunError: Nothing was trained.
        """
        if self.trainer.fast_dev_run:
            rank_zero_info("--trainer.fast_dev_run: the steps worked. Nothing was written: without it a model is.")
            return True
        if not self.trainer.global_step:
            raise RunError("Nothing was trained: the Trainer's options end the run before its first step.")
        return False

    def _load_best(self) -> None:
        """Take the weights with the least validation loss back, if there was a validation.

        Raises:
            RunError: best.ckpt is not what was written there.
        """
        if self.checkpoints.best_step is None:
            rank_zero_info("There was no validation to choose the best weights by: the last ones are exported.")
            return
        weights = read_checkpoint(self.checkpoints.best)["state_dict"]
        check_weights(weights, self.model, self.model.trained_names())
        self.model.load_state_dict(weights, strict=False)
        made = self.checkpoints
        rank_zero_info(f"The weights of step {made.best_step} are exported: {made.monitor}={made.best_score:.4g}.")


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line; an error that is the user's to mend ends it with one message, not a traceback.

    Args:
        args: The command line; by default that of the process.
    """
    run_or_exit(TrainCLI, args)


def _numbers(values: Tensor) -> tuple[Any, ...]:
    """Return a tensor [layers] or [layers, bins] as tuples."""
    return tuple(_numbers(row) for row in values) if values.dim() > 1 else tuple(values.tolist())


def _goes_on(config: Namespace) -> bool:
    """Tell whether a training is to go on with the run in the output folder."""
    if config.ckpt_path is None:
        return False
    return config.ckpt_path == "last" or Path(config.ckpt_path).resolve().is_relative_to(Path(config.output).resolve())
