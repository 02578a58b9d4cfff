"""FrozenExitModule: train a small network to tell from a frozen model's hidden states where tokens can exit."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric
from torchmetrics.classification import MultilabelAUROC, MultilabelF1Score
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hsdlab.decoding.families import decoder_config, decoder_parts, plain_model
from hsdlab.decoding.layer_outputs import layer_outputs
from hsdlab.errors import RunError, UserError
from hsdlab.metrics.reliability import Reliability, both_kinds
from hsdlab.models.device_map import check_movable
from hsdlab.models.load import weights_fingerprint
from hsdlab.modules.checkpoint_files import tensor_bytes
from hsdlab.modules.finite import check_finite, check_loss
from hsdlab.modules.model_inputs import at_full_depth
from hsdlab.modules.optimizer import adamw
from hsdlab.modules.trained_weights import check_optimizer, check_same, check_weights
from hsdlab.modules.weight_files import errors_of_the_system
from hsdlab.records.files import whole_file


@dataclass(frozen=True)
class ExitExamples:
    """What the network learns from: all decode steps of a batch of texts. `steps` is 0 where each text has one token.

    Attributes:
        states: Outputs of the layers that are learned, before the final norm, float32 [steps, layers, d].
        agrees: Whether the layer's most likely token is the last layer's, BoolTensor [steps, layers].
        numbers: t of each decode step in its text, LongTensor [steps].
    """

    states: Tensor
    agrees: Tensor
    numbers: Tensor


class SavedNetwork(Protocol):
    """A network that writes itself to a file."""

    def state_dict(self) -> dict[str, Tensor]:
        """Give the parameters.

        Returns:
            Each by its name.
        """

    def save(self, path: str | Path) -> None:
        """Write the file.

        Args:
            path: Where to.
        """


class FrozenExitModule(LightningModule, ABC):
    """Trains a small network on a frozen model; the base of the exit classifier's and the exit router's training.

    It is teacher-forced on the references, at the inputs of decode steps. It logs train/loss, and on the validation
    split val/loss, val/f1, val/auroc, val/calibration_error (means over the layers) and val/agreement, the share of
    steps in which a layer's prediction is the last layer's.

    Args:
        model: A transformers language model. It is frozen and set to eval mode.
        tokenizer: Its tokenizer.
        max_new_tokens: References are cut to so many tokens; 2 or more.
        learning_rate: Peak of AdamW's learning rate, which falls linearly to 0 over the run.
        layers: The layers whose outputs the network learns from. None for all but the last.

    Attributes:
        layers: The layers, ascending.
        quality: Figures of the last validation by name, float64: "agreement", "f1" and "auroc" [layers], and those of
            `Reliability`. AUROC is NaN for a layer that always or never agrees with the last one. Empty before the
            first validation.

    Raises:
        UserError: A number out of its range, a model of one layer, or a layer that it does not have.
    """

    validates_loss = True  # the data module gives validation batches pairs of prompt and reference
    made_by: ClassVar[str]  # the subcommand of train.py
    network: ClassVar[str]  # in words
    key: ClassVar[str]  # of checkpoints

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        max_new_tokens: int,
        learning_rate: float,
        layers: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        check_movable(model, type(self).__name__)
        if max_new_tokens < 2:
            raise UserError(f"max_new_tokens={max_new_tokens}: expected 2 or more, for there to be a decode step.")
        if not 0 < learning_rate <= 1000:
            raise UserError(f"learning_rate={learning_rate}: expected more than 0, and 1000 at most.")
        parts = decoder_parts(model)
        if parts.num_layers < 2:
            raise UserError("The model has one layer: there is nowhere to exit early.")
        below_last = range(parts.num_layers - 1)
        if layers is not None and (not layers or set(layers) - set(below_last)):
            raise UserError(f"layers={list(layers)}: this model can exit after the layers 0 to {below_last[-1]}.")
        self.layers = tuple(sorted(set(below_last if layers is None else layers)))
        if len(self.layers) < 2:
            raise UserError(f"layers={list(self.layers)}: expected two layers or more to choose from.")
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.max_new_tokens = max_new_tokens
        self.learning_rate = learning_rate
        self.strict_loading = False  # checkpoints hold no weight of the model
        self.loss_metric = MeanMetric(nan_strategy="error")  # by default it leaves a NaN out
        exits = len(self.layers)
        self.layer_metrics = nn.ModuleDict(
            {
                "f1": MultilabelF1Score(exits, average="none"),
                "auroc": MultilabelAUROC(exits, average="none", thresholds=200),
                "reliability": Reliability(exits),
            }
        )
        self.quality: dict[str, Tensor] = {}
        config = decoder_config(plain_model(model).config)
        self._identity = {
            "model": f"{config.model_type} ({config.num_hidden_layers} layers, width {config.hidden_size})",
            "weights of the model": weights_fingerprint(model),
            "max_new_tokens": max_new_tokens,
            "learning_rate": learning_rate,
        }

    @abstractmethod
    def log_odds(self, examples: ExitExamples) -> Tensor:
        """Apply the network.

        Args:
            examples: Of a batch, at least one step.

        Returns:
            [steps, layers]; in training mode, with gradient.
        """

    @abstractmethod
    def loss(self, log_odds: Tensor, examples: ExitExamples) -> Tensor:
        """Compute what a training step minimises.

        Args:
            log_odds: [steps, layers], of `log_odds`.
            examples: The same.

        Returns:
            A scalar.
        """

    @abstractmethod
    def finished(self) -> SavedNetwork:
        """Make the network that a strategy reads.

        Returns:
            A frozen copy.
        """

    def probability(self, log_odds: Tensor) -> Tensor:
        """Turn the network's answer into the probability that the layer's token is the last layer's.

        Args:
            log_odds: [steps, layers].

        Returns:
            Of the same shape, from 0 to 1.
        """
        return log_odds.sigmoid()

    def setup(self, stage: str) -> None:
        """Note which settings and data a checkpoint must share with this run."""
        datamodule: Any = getattr(self.trainer, "datamodule", None)
        if stage == "fit" and hasattr(datamodule, "training_identity"):
            self._identity |= datamodule.training_identity()

    def training_step(self, batch: dict[str, Any], batch_index: int) -> Tensor:
        """Compute the loss of a batch of `collate_pairs`. A batch without a decode step has loss 0.

        Raises:
            RunError: The loss is not finite (see `check_loss` for the cost of this check).
        """
        examples = self.examples(batch)
        if len(examples.states):
            loss = self.loss(self.log_odds(examples), examples)
        else:
            loss = (
                0.0 * torch.stack([weight.sum() for weight in self._weights()]).sum()
            )  # under DDP every process has a gradient
        where = f"step {self.trainer.global_step + 1} (epoch {self.trainer.current_epoch + 1})"
        agree = partial(self.trainer.strategy.reduce_boolean_decision, all=False)
        again = partial(self._again, batch)
        check_loss(loss, f"train/loss in {where}", batch.get("ids", ()), self, again, agree=agree)
        if not len(examples.states):
            return loss
        self.log("train/loss", loss, prog_bar=True)
        return loss

    @torch.no_grad()
    def examples(self, batch: dict[str, Any]) -> ExitExamples:
        """Compute what the network learns from.

        Args:
            batch: input_ids, attention_mask and target_mask, [rows, length], of `collate_pairs`.

        Returns:
            The layers' outputs in all decode steps of all rows, and whether each predicts as the last one.
        """
        parts = decoder_parts(self.model)
        targets = batch["target_mask"]
        inputs = targets[:, :-1] & targets[:, 1:]  # (rows, length - 1): new tokens but the last
        with layer_outputs(self.model) as outputs:
            (parts.model if "source_ids" in batch else parts.body)(**at_full_depth(batch))
        last = parts.logits(outputs[parts.num_layers - 1][:, :-1][inputs]).argmax(dim=-1)  # (steps,)
        states = torch.stack([outputs[layer][:, :-1][inputs] for layer in self.layers], dim=1)  # (steps, layers, d)
        predicted = torch.stack(
            [
                parts.logits(state, layer).argmax(dim=-1)
                for layer, state in zip(self.layers, states.unbind(dim=1), strict=True)
            ],
            dim=1,
        )
        numbers = inputs.long().cumsum(dim=1)[inputs] - 1
        return ExitExamples(states.float(), predicted == last[:, None], numbers)

    def _again(self, batch: dict[str, Any]) -> Tensor:
        examples = self.examples(batch)
        return self.loss(self.log_odds(examples), examples)

    def on_validation_epoch_start(self) -> None:
        """Reset the metrics."""
        for metric in self._metrics():
            metric.reset()

    def validation_step(self, batch: dict[str, Any], batch_index: int) -> None:
        """Score the network on a batch, layer by layer."""
        examples = self.examples(batch["pairs"])
        if not len(examples.states):
            return
        log_odds = self.log_odds(examples)
        loss = self.loss(log_odds, examples)
        again = partial(self._again, batch["pairs"])
        check_loss(loss, f"val/loss after step {self.trainer.global_step}", batch["ids"], self, again)
        self.loss_metric.update(loss, weight=len(examples.states))
        for metric in self.layer_metrics.values():
            metric.update(self.probability(log_odds), examples.agrees)  # type: ignore[operator]

    def on_validation_epoch_end(self) -> None:
        """Log the figures of all processes; keep those of each layer in `quality`."""
        reliability = dict(self.layer_metrics["reliability"].compute())  # type: ignore[operator]
        positive_rate = reliability.pop("positive_rate")
        auroc = self.layer_metrics["auroc"].compute().to(positive_rate.device).double()  # type: ignore[operator]
        self.quality = {
            "agreement": positive_rate,
            "f1": self.layer_metrics["f1"].compute().to(positive_rate.device).double(),  # type: ignore[operator]
            "auroc": auroc.reshape(-1).where(both_kinds(positive_rate), torch.nan),
            **reliability,
        }
        means = {name: self.quality[name].nanmean() for name in ("agreement", "f1", "auroc", "calibration_error")}
        figures = {"loss": self.loss_metric.compute(), **means}
        self.log_dict({f"val/{name}": value.float() for name, value in figures.items()}, prog_bar=True, sync_dist=True)

    def _metrics(self) -> list[Metric]:
        return [self.loss_metric, *self.layer_metrics.values()]  # type: ignore[list-item]

    def _weights(self) -> list[nn.Parameter]:
        return [weight for name, weight in self.named_parameters() if not name.startswith("model.")]

    def configure_optimizers(self) -> dict[str, Any]:
        """Return AdamW over the network and its learning rate schedule."""
        return adamw(
            self._weights(),
            learning_rate=self.learning_rate,
            weight_decay=0.0,
            steps=self.trainer.estimated_stepping_batches,
            warmup=0.0,
            schedule="linear",
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the network's weights only; add the settings that a resumed run is checked against."""
        weights = checkpoint["state_dict"]
        checkpoint["state_dict"] = {name: weights[name] for name in self.trained_names()}
        checkpoint[self.key] = {"identity": self._identity}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another model, or a resumed run with other settings or data.

        Raises:
            RunError: The checkpoint does not fit. The message names each difference, or what the checkpoint lacks.
        """
        if "identity" not in checkpoint.get(self.key, {}):
            raise RunError(f"The checkpoint is not an {self.network}'s: expected one of train.py {self.made_by}.")
        check_same(checkpoint[self.key]["identity"], self._identity)
        check_weights(checkpoint["state_dict"], self, self.trained_names())
        if self.trainer.state.fn == TrainerFn.FITTING:
            check_optimizer(checkpoint)

    def trained_names(self) -> list[str]:
        """List what a checkpoint holds.

        Returns:
            Names in `state_dict` of the trained weights, and of the buffers that go with them.
        """
        return [name for name in self.state_dict() if not name.startswith("model.")]

    def export(self, path: str | PathLike[str]) -> None:
        """Write `finished` for the strategy that reads it.

        Args:
            path: The .safetensors file. An existing file is replaced once the new one is complete.

        Raises:
            RunError: A weight is not finite, or the file cannot be written.
        """
        network = self.finished()
        for name, weight in network.state_dict().items():
            check_finite(weight, f"{name} of the {self.network}")
        with whole_file(Path(path), tensor_bytes(network.state_dict())) as unfinished, errors_of_the_system():
            network.save(unfinished)
