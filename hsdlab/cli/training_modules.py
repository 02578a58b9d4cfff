"""What `train.py` makes of the options of `model`: a model loaded, and the module that trains it; its Trainer."""

from typing import Any

from lightning.pytorch import Trainer

from hsdlab.data import GenerationDataModule
from hsdlab.errors import faults_of_the_run
from hsdlab.models import Attention, Quantization, load_model
from hsdlab.modules import ExitClassifierModule, ExitRouterModule, FinetuneModule
from hsdlab.modules.decode import Dtype
from hsdlab.strategies import SkipStrategy


def load_finetune_module(
    name: str,
    dtype: Dtype = "float32",
    revision: str | None = None,
    attention: Attention | None = None,
    quantization: Quantization | None = None,
    skip_strategies: list[SkipStrategy] | None = None,
    **kwargs: Any,
) -> FinetuneModule:
    """Load a model and put it into a FinetuneModule: the `model` of `train.py`.

    Args:
        name: An embedded model ("embedded:smollm2-135m"), a local Hugging Face folder, a .gguf file, a folder with a
            LoRA adapter (merged first), or the id of a model on the hub.
        dtype: Of the weights; for mixed precision leave float32 and give --trainer.precision=bf16-mixed.
        revision: Branch, tag or commit of a model on the hub.
        attention: sdpa (torch's fused attention) or eager (faster for short texts in bfloat16 on a CPU).
        quantization: int8 or nf4, for LoRA.
        skip_strategies: Strategies with layers known before a step (class names, or class_path and init_args), one
            drawn per batch: full depth among them if it is to stay good. By default every batch is at full depth.
        **kwargs: See `FinetuneModule`.

    Returns:
        The module, with the model in `dtype` on the CPU.

    Raises:
        UserError, OSError, RuntimeError: See `load_model` and `FinetuneModule`.
    """
    with faults_of_the_run():
        model, tokenizer = load_model(
            name, dtype=dtype, device="cpu", revision=revision, attention=attention, quantization=quantization
        )
    return FinetuneModule(model, tokenizer, skip_strategies=skip_strategies or (), **kwargs)


def load_exit_classifier_module(
    name: str,
    dtype: Dtype = "float32",
    adapter: str | None = None,
    revision: str | None = None,
    quantization: Quantization | None = None,
    **kwargs: Any,
) -> ExitClassifierModule:
    """Load a model and put it into an ExitClassifierModule: the `model` of `train.py fit_exit_classifier`.

    Args:
        name: An embedded model ("embedded:smollm2-135m"), a local Hugging Face folder, a .gguf file, a folder with a
            LoRA adapter (its base model is loaded too), or the id of a model on the hub.
        dtype: Of the weights, as decoding will have them.
        adapter: Folder of a LoRA adapter to merge into the model.
        revision: Branch, tag or commit of a model on the hub.
        quantization: Round the weights of the layers: int8 or nf4.
        **kwargs: See `ExitClassifierModule`.

    Returns:
        The module, with the model in `dtype` on the CPU.

    Raises:
        UserError, OSError, RuntimeError: See `load_model` and `ExitClassifierModule`.
    """
    with faults_of_the_run():
        model, tokenizer = load_model(
            name, dtype=dtype, device="cpu", adapter=adapter, revision=revision, quantization=quantization
        )
    return ExitClassifierModule(model, tokenizer, **kwargs)


def load_exit_router_module(
    name: str, dtype: Dtype = "float32", adapter: str | None = None, revision: str | None = None, **kwargs: Any
) -> ExitRouterModule:
    """Load a model and put it into an ExitRouterModule: the `model` of `train.py fit_exit_router`.

    Args:
        name: An embedded model ("embedded:smollm2-135m"), a local Hugging Face folder, a .gguf file, a folder with a
            LoRA adapter (its base model is loaded too), or the id of a model on the hub.
        dtype: Of the weights, as decoding will have them.
        adapter: Folder of a LoRA adapter to merge into the model.
        revision: Branch, tag or commit of a model on the hub.
        **kwargs: See `ExitRouterModule`.

    Returns:
        The module, with the model in `dtype` on the CPU.

    Raises:
        UserError, OSError, RuntimeError: See `load_model` and `ExitRouterModule`.
    """
    with faults_of_the_run():
        model, tokenizer = load_model(name, dtype=dtype, device="cpu", adapter=adapter, revision=revision)
    return ExitRouterModule(model, tokenizer, **kwargs)


class TrainingTrainer(Trainer):
    """A Trainer with a second kind of training, so that each has a subcommand."""

    def fit_exit_classifier(
        self, model: ExitClassifierModule, datamodule: GenerationDataModule, ckpt_path: str | None = None
    ) -> None:
        """Train CALM's early-exit classifier on a model that stays as it is.

        Args:
            model: Holds the model and the classifier.
            datamodule: The data.
            ckpt_path: Checkpoint to resume from; "last" for the newest of the run in the output folder.
        """
        self.fit(model, datamodule=datamodule, ckpt_path=ckpt_path)

    def fit_exit_router(
        self, model: ExitRouterModule, datamodule: GenerationDataModule, ckpt_path: str | None = None
    ) -> None:
        """Train the router of LearnedExit on a model that stays as it is.

        Args:
            model: Holds the model and the router.
            datamodule: The data.
            ckpt_path: Checkpoint to resume from; "last" for the newest of the run in the output folder.
        """
        self.fit(model, datamodule=datamodule, ckpt_path=ckpt_path)


MODULES: dict[str, Any] = {
    "fit": load_finetune_module,
    "validate": load_finetune_module,
    "fit_exit_classifier": load_exit_classifier_module,
    "fit_exit_router": load_exit_router_module,
}
"""What each subcommand makes its `model` with."""
