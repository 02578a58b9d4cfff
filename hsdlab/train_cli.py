"""The command line of `train.py`: fine-tune a model, or compute its validation loss."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jsonargparse.typing import PositiveInt
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only

from hsdlab.cli import (
    EvaluateParser,
    check_precision,
    dropping_arguments_of_other_classes,
    is_for_the_user,
    resolved_config,
)
from hsdlab.data import GenerationDataModule
from hsdlab.models import load_model
from hsdlab.modules import FinetuneModule
from hsdlab.modules.decode import Dtype
from hsdlab.reporting import run_provenance
from hsdlab.run_folder import write_config, write_json
from hsdlab.strategies import SkipStrategy


def load_finetune_module(
    name: str,
    dtype: Dtype = "float32",
    revision: str | None = None,
    skip_strategies: list[SkipStrategy] | None = None,
    **kwargs: Any,
) -> FinetuneModule:
    """Load a model and put it into a FinetuneModule: the `model` of `train.py`.

    Args:
        name: An embedded model ("embedded:smollm2-135m"), a local Hugging Face folder, a .gguf file, a folder with a
            LoRA adapter (merged into its base model first), or the id of a model on the hub.
        dtype: Of the weights; for mixed precision leave float32 and give --trainer.precision=bf16-mixed.
        revision: Branch, tag or commit of a model on the hub.
        skip_strategies: Strategies with layers known before a step (class names, or class_path and init_args), one
            drawn per batch: full depth among them if it is to stay good. By default every batch is at full depth.
        **kwargs: See `FinetuneModule`.

    Raises:
        ValueError, OSError, RuntimeError: See `load_model` and `FinetuneModule`.
    """
    model, tokenizer = load_model(name, dtype=dtype, device="cpu", revision=revision)
    return FinetuneModule(model, tokenizer, skip_strategies=skip_strategies or (), **kwargs)


class TrainCLI(LightningCLI):
    """LightningCLI for fine-tuning: fit, validate.

    `fit` writes into --output: config.yaml (runs again as it is), run.json (what it was made with), checkpoints/
    (best.ckpt by val/loss, last.ckpt to go on with), the logger's files, and model/, the best weights for
    `load_model`, transformers or peft.

    Args:
        args: The command line; by default that of the process.
    """

    model: FinetuneModule
    trainer: Trainer
    trainer_defaults: dict[str, Any]

    def __init__(self, args: Sequence[str] | None = None) -> None:
        super().__init__(
            load_finetune_module,
            GenerationDataModule,
            subclass_mode_data=True,
            trainer_defaults={
                "max_epochs": 3,
                "gradient_clip_val": 1.0,
                "devices": 1,
                "log_every_n_steps": 10,
                "enable_model_summary": False,
            },
            parser_class=EvaluateParser,
            parser_kwargs={"description": "Fine-tune a model, at full depth or as it will be decoded."},
            save_config_callback=None,  # it wants a logger's folder; ours is written into --output
            seed_everything_default=0,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            args=None if args is None else list(args),
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return the subcommands, methods of the Trainer, and their parameters that are no options."""
        return {
            "fit": {"model", "train_dataloaders", "val_dataloaders", "datamodule", "weights_only"},
            "validate": {"model", "dataloaders", "datamodule", "weights_only"},
        }

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        parser.callback_keys.append("skip")
        parser.add_lightning_class_args(SkipStrategy, "skip", subclass_mode=True)
        parser.set_defaults({"skip": {"class_path": "hsdlab.FullDepth"}})
        if subcommand == "validate":
            parser.set_defaults({"trainer.logger": False})
            return parser
        parser.add_argument("--output", type=str, default="runs/fit", help="Folder for all that is written.")
        parser.add_argument(
            "--checkpoint_every",
            type=PositiveInt,
            default=100,
            help="Write last.ckpt every so many steps; a run that was cut short goes on from it with --ckpt_path=last.",
        )
        parser.link_arguments("output", "trainer.default_root_dir")
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse; a class that is named later takes no arguments over from the one named before."""
        with dropping_arguments_of_other_classes():
            super().parse_arguments(parser, args)

    def before_instantiate_classes(self) -> None:
        """Refuse what can be refused before the model is loaded: folder, data; add the checkpoints."""
        config = self.config[self.subcommand]
        data = self.parser.instantiate(self.config, instantiate_groups=False)[self.subcommand].data
        if self.subcommand == "fit":
            self.output = Path(config.output)
            if rank_zero_only.rank == 0:
                _check_free(self.output, resumes=config.ckpt_path is not None)
            self.best, last = _checkpoints(self.output / "checkpoints", config.checkpoint_every)
            self.trainer_defaults = {**self.trainer_defaults, "callbacks": [self.best, last]}
        data.prepare_data()
        for split in ("train", "validation") if self.subcommand == "fit" else ("validation",):
            data.examples(split)

    def after_instantiate_classes(self) -> None:
        """Refuse what does not fit the model or the device; only then begin to write."""
        check_precision(self.trainer, self.config[self.subcommand].trainer.precision)
        skip = self.config_init[self.subcommand].skip
        with skip.applied_to(self.model.model, max_new_tokens=self.model.max_new_tokens):
            pass
        if self.subcommand != "fit" or rank_zero_only.rank != 0:
            return
        config = resolved_config(self._parser("fit"), self.config.fit)
        config = {name: value for name, value in config.items() if name != "ckpt_path"}
        self.output.mkdir(parents=True, exist_ok=True)
        write_config(self.output, config, "python train.py fit")
        write_json(self.output / "run.json", run_provenance(config["seed_everything"], config))

    def after_fit(self) -> None:
        """Export the best weights (the last ones, if there was no validation)."""
        if rank_zero_only.rank == 0:
            if self.best.best_model_path:
                weights = torch.load(self.best.best_model_path, map_location="cpu", weights_only=True)["state_dict"]
                self.model.load_state_dict(weights, strict=False)
            self.model.export(self.output / "model")
        rank_zero_info(f"Decode with it: python evaluate.py test --model.name={self.output / 'model'} ...")


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line; an error that is the user's to mend ends it with one message, not a traceback.

    Args:
        args: The command line; by default that of the process.
    """
    try:
        TrainCLI(args)
    except Exception as error:
        if not is_for_the_user(error):
            raise
        sys.exit(f"error: {error}")


def _checkpoints(folder: Path, every_steps: int) -> tuple[ModelCheckpoint, ModelCheckpoint]:
    """Return the callbacks that keep the best weights by val/loss, and the last state for going on."""
    options: dict[str, Any] = {"dirpath": folder, "enable_version_counter": False}
    best = ModelCheckpoint(filename="best", monitor="val/loss", mode="min", **options)
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
