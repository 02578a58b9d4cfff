"""The command line of `train.py`: fine-tune a model, compute its validation loss, train an exit classifier for it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jsonargparse import set_parsing_settings
from jsonargparse.typing import PositiveInt
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only
from rich.console import Console
from torch import Tensor

from hsdlab.cli.exits import run_or_exit
from hsdlab.cli.parser import SubcommandCLI, resolved_config
from hsdlab.cli.precision import check_precision
from hsdlab.cli.stops import WITHOUT_RESULT
from hsdlab.data import GenerationDataModule
from hsdlab.errors import faults_of_the_run
from hsdlab.models import Attention, load_model
from hsdlab.modules import ExitClassifierModule, FinetuneModule
from hsdlab.modules.decode import Dtype
from hsdlab.modules.lora import LoRA
from hsdlab.program import TRAIN_SCRIPT, typed
from hsdlab.records.exit_quality import ExitQuality
from hsdlab.records.provenance import run_info
from hsdlab.records.run_folder import RUN_FILE, write_config
from hsdlab.reporting.exit_quality import exit_quality_figure, print_exit_quality, write_exit_quality
from hsdlab.strategies import SkipStrategy


def load_finetune_module(
    name: str,
    dtype: Dtype = "float32",
    revision: str | None = None,
    attention: Attention | None = None,
    skip_strategies: list[SkipStrategy] | None = None,
    **kwargs: Any,
) -> FinetuneModule:
    """Load a model and put it into a FinetuneModule: the `model` of `train.py`.

    Args:
        name: An embedded model ("embedded:smollm2-135m"), a local Hugging Face folder, a .gguf file, a folder with a
            LoRA adapter (merged into its base model first), or the id of a model on the hub.
        dtype: Of the weights; for mixed precision leave float32 and give --trainer.precision=bf16-mixed.
        revision: Branch, tag or commit of a model on the hub.
        attention: sdpa (torch's fused attention) or eager (plain matrix products, faster for short texts in bfloat16 on
            a CPU); by default what transformers takes.
        skip_strategies: Strategies with layers known before a step (class names, or class_path and init_args), one
            drawn per batch: full depth among them if it is to stay good. By default every batch is at full depth.
        **kwargs: See `FinetuneModule`.

    Raises:
        UserError, OSError, RuntimeError: See `load_model` and `FinetuneModule`.
    """
    with faults_of_the_run():
        model, tokenizer = load_model(name, dtype=dtype, device="cpu", revision=revision, attention=attention)
    return FinetuneModule(model, tokenizer, skip_strategies=skip_strategies or (), **kwargs)


def load_exit_classifier_module(
    name: str, dtype: Dtype = "float32", adapter: str | None = None, revision: str | None = None, **kwargs: Any
) -> ExitClassifierModule:
    """Load a model and put it into an ExitClassifierModule: the `model` of `train.py fit_exit_classifier`.

    Args:
        name: An embedded model ("embedded:smollm2-135m"), a local Hugging Face folder, a .gguf file, a folder with a
            LoRA adapter (its base model is loaded too), or the id of a model on the hub.
        dtype: Of the weights, as decoding will have them.
        adapter: Folder of a LoRA adapter to merge into the model.
        revision: Branch, tag or commit of a model on the hub.
        **kwargs: See `ExitClassifierModule`.

    Raises:
        UserError, OSError, RuntimeError: See `load_model` and `ExitClassifierModule`.
    """
    with faults_of_the_run():
        model, tokenizer = load_model(name, dtype=dtype, device="cpu", adapter=adapter, revision=revision)
    return ExitClassifierModule(model, tokenizer, **kwargs)


class TrainingTrainer(Trainer):
    """A Trainer with a second kind of training, so that each has a subcommand."""

    def fit_exit_classifier(
        self, model: ExitClassifierModule, datamodule: GenerationDataModule, ckpt_path: str | None = None
    ) -> None:
        """Train CALM's early-exit classifier on a model that stays as it is.

        Args:
            model: Holds the model and the classifier.
            datamodule: The data.
            ckpt_path: Checkpoint to go on from; "last" for the newest of the run in the output folder.
        """
        self.fit(model, datamodule=datamodule, ckpt_path=ckpt_path)


LAST_CHECKPOINT = Path("checkpoints", "last.ckpt")
MODULES: dict[str, Any] = {
    "fit": load_finetune_module,
    "validate": load_finetune_module,
    "fit_exit_classifier": load_exit_classifier_module,
}
"""What each subcommand makes its `model` with."""


class TrainCLI(SubcommandCLI):
    """LightningCLI for training: fit, validate, fit_exit_classifier.

    `fit` writes into --output: config.yaml (runs again as it is), run.json (what it was made with), checkpoints/
    (best.ckpt by val/loss, or by val/skip_loss if it trains skip-aware; last.ckpt to go on with), the logger's files,
    and model/, the best weights for `load_model`, transformers or peft. `fit_exit_classifier` writes
    exit_classifier.safetensors in place of model/, and how good it is as .json and .png.

    Args:
        args: The command line; by default that of the process.
    """

    model: FinetuneModule | ExitClassifierModule
    trainer: TrainingTrainer
    trainer_defaults: dict[str, Any]

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
        }

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        self._model_class = MODULES[subcommand]
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        parser.set_defaults({"data": {"class_path": "hsdlab.data.DataFolder"}})
        if subcommand != "fit_exit_classifier":
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
            help="Write last.ckpt every so many steps; a run that was cut short goes on from it with --ckpt_path=last.",
        )
        parser.link_arguments("output", "trainer.default_root_dir")
        return parser

    def before_instantiate_classes(self) -> None:
        """Refuse what can be refused before the model is loaded: folder, data; add the checkpoints."""
        config = self.config[self.subcommand]
        data = self.parser.instantiate(self.config, instantiate_groups=False)[self.subcommand].data
        if self.subcommand != "validate":
            self.output = Path(config.output)
            if rank_zero_only.rank == 0:
                _check_free(self.output, resumes=config.ckpt_path is not None)
            monitor = "val/skip_loss" if config.model.get("skip_strategies") else "val/loss"
            self.best, last = _checkpoints(self.output / "checkpoints", config.checkpoint_every, monitor)
            callbacks = [*self.trainer_defaults["callbacks"], self.best, last]
            self.trainer_defaults = {**self.trainer_defaults, "callbacks": callbacks}
        splits = ("validation",) if self.subcommand == "validate" else ("train", "validation")
        with faults_of_the_run():
            data.check(*splits, for_training=True)

    def after_instantiate_classes(self) -> None:
        """Refuse what does not fit the model or the device; only then begin to write."""
        check_precision(self.trainer, self.config[self.subcommand].trainer.precision)
        if "skip" in self.config_init[self.subcommand]:
            skip = self.config_init[self.subcommand].skip
            with skip.applied_to(self.model.model, max_new_tokens=self.model.max_new_tokens):
                pass
            self.model.check_callbacks(self.trainer.callbacks)
        if self.subcommand == "validate" or rank_zero_only.rank != 0:
            return
        config = resolved_config(self._parser(self.subcommand), self.config[self.subcommand])
        config = {name: value for name, value in config.items() if name != "ckpt_path"}
        self.run_info = run_info(config["seed_everything"], config, self.subcommand)
        self.output.mkdir(parents=True, exist_ok=True)
        write_config(self.output, config, typed(self.subcommand, TRAIN_SCRIPT))
        self.run_info.write(self.output / RUN_FILE)

    def how_to_go_on(self) -> str:
        """Say what there is to go on with after the command was stopped."""
        if self.subcommand == "validate" or "output" not in vars(self):
            return WITHOUT_RESULT
        if (self.output / LAST_CHECKPOINT).exists():
            return f"Go on with the checkpoint in {self.output}: the same command with --ckpt_path=last."
        return (
            f"There is no checkpoint yet (see --checkpoint_every): remove {self.output} or give another folder, and "
            "begin anew."
        )

    def after_fit(self) -> None:
        """Export the best weights (the last ones, if there was no validation)."""
        if rank_zero_only.rank == 0:
            assert isinstance(self.model, FinetuneModule)
            self._load_best()
            self.model.export(self.output / "model")
        rank_zero_info(f"Decode with it: {typed('test')} --model.name={self.output / 'model'} ...")

    def after_fit_exit_classifier(self) -> None:
        """Write the best classifier, and how good it is on the validation split, layer by layer."""
        assert isinstance(self.model, ExitClassifierModule)
        self._load_best()
        self.trainer.validate(self.model, datamodule=self.datamodule, verbose=False)  # in all processes
        file = self.output / "exit_classifier.safetensors"
        if rank_zero_only.rank == 0:
            self.model.folded().save(file)
            figures = {name: _numbers(values) for name, values in self.model.quality.items()}
            quality = ExitQuality(**figures, run=self.run_info)
            write_exit_quality(quality, self.output)
            print_exit_quality(quality, Console())
            for logger in self.trainer.loggers:
                if isinstance(logger, TensorBoardLogger):
                    logger.experiment.add_figure("exit_classifier", exit_quality_figure(quality))
                    logger.experiment.flush()
        rank_zero_info(
            f"Decode with it: {typed('test')} --skip=CALM --skip.measure=classifier --skip.classifier={file} ..."
        )

    def _load_best(self) -> None:
        """Take the weights with the least val/loss back, if there was a validation."""
        if self.best.best_model_path:
            weights = torch.load(self.best.best_model_path, map_location="cpu", weights_only=True)["state_dict"]
            self.model.load_state_dict(weights, strict=False)


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line; an error that is the user's to mend ends it with one message, not a traceback.

    Args:
        args: The command line; by default that of the process.
    """
    run_or_exit(TrainCLI, args)


def _numbers(values: Tensor) -> tuple[Any, ...]:
    """Return a tensor [layers] or [layers, bins] as tuples."""
    return tuple(_numbers(row) for row in values) if values.dim() > 1 else tuple(values.tolist())


def _checkpoints(folder: Path, every_steps: int, monitor: str) -> tuple[ModelCheckpoint, ModelCheckpoint]:
    """Return the callbacks that keep the best weights by a validation loss, and the last state for going on."""
    options: dict[str, Any] = {"dirpath": folder, "enable_version_counter": False}
    best = ModelCheckpoint(filename="best", monitor=monitor, mode="min", **options)
    return best, ModelCheckpoint(filename="last", every_n_train_steps=every_steps, **options)


def _check_free(folder: Path, resumes: bool) -> None:
    """Refuse a folder that holds something, unless the run in it goes on."""
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"--output={folder} is a file; expected a folder.")
    if not resumes and folder.exists() and any(folder.iterdir()):
        raise FileExistsError(
            f"The output folder {folder} is not empty. Give another one with --output, or go on with the run in it: "
            "--ckpt_path=last."
        )
