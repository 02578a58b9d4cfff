"""ExitClassifierModule: train CALM's early-exit classifier on a frozen model."""

from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torchmetrics import MeanMetric, Metric
from torchmetrics.classification import MultilabelAUROC, MultilabelF1Score
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hsdlab.decoding.exit_classifier import ExitClassifier
from hsdlab.decoding.families import decoder_config, decoder_parts, plain_model
from hsdlab.decoding.layer_outputs import layer_outputs
from hsdlab.errors import RunError, UserError
from hsdlab.metrics.reliability import Reliability
from hsdlab.models.device_map import check_movable
from hsdlab.models.load import weights_fingerprint
from hsdlab.modules.checkpoint_files import tensor_bytes
from hsdlab.modules.finite import check_finite, check_loss
from hsdlab.modules.model_inputs import at_full_depth
from hsdlab.modules.optimizer import adamw
from hsdlab.modules.trained_weights import check_optimizer, check_same, check_weights
from hsdlab.modules.weight_files import errors_of_the_system
from hsdlab.records.files import whole_file


class ExitClassifierModule(LightningModule):
    """Trains one linear layer to tell from a layer's output whether its prediction is already the last layer's.

    This is CALM's second stage, after fine-tuning (arXiv 2207.07061, section 3.5). The model is frozen. The loss is the
    binary cross-entropy, averaged over every layer but the last without weights. It is teacher-forced on the
    references, at the inputs of decode steps. In training, the hidden states are standardised by their mean and
    variance over all layers, since their magnitudes differ by orders between layers. `folded` moves that into the
    weights.

    Logs train/loss. On the validation split it logs val/loss, val/f1, val/auroc, val/calibration_error (means over the
    layers) and val/agreement, the share of steps in which a layer's prediction is the last layer's.

    Args:
        model: A transformers model, decoder-only or encoder-decoder. It is frozen and set to eval mode.
        tokenizer: Its tokenizer.
        max_new_tokens: References are cut to so many tokens; 2 or more.
        learning_rate: Peak of AdamW's learning rate, which falls linearly to 0 over the run.

    Attributes:
        quality: Figures of the last validation by name, float64: "agreement", "f1" and "auroc" [layers - 1], and those
            of `Reliability`. AUROC is NaN for a layer that always or never agrees with the last one. Empty before the
            first validation.

    Raises:
        UserError: A number out of its range, or a model of one layer.
    """

    validates_loss = True  # the data module gives validation batches pairs of prompt and reference

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        max_new_tokens: int = 50,
        learning_rate: float = 0.01,
    ) -> None:
        super().__init__()
        check_movable(model, "ExitClassifierModule")
        if max_new_tokens < 2:
            raise UserError(f"max_new_tokens={max_new_tokens}: expected 2 or more, for there to be a decode step.")
        if not 0 < learning_rate <= 1000:
            raise UserError(f"learning_rate={learning_rate}: expected more than 0, and 1000 at most.")
        parts = decoder_parts(model)
        if parts.num_layers < 2:
            raise UserError("The model has one layer: there is nowhere to exit early.")
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.max_new_tokens = max_new_tokens
        self.learning_rate = learning_rate
        self.classifier = ExitClassifier(parts.hidden_size)
        self.standardise = nn.BatchNorm1d(parts.hidden_size, affine=False, momentum=None)
        self.strict_loading = False  # checkpoints hold no weight of the model
        exits = parts.num_layers - 1
        self.loss_metric = MeanMetric(nan_strategy="error")  # by default it leaves a NaN out
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

    def setup(self, stage: str) -> None:
        """Note which settings and data a checkpoint must share with this run."""
        datamodule: Any = getattr(self.trainer, "datamodule", None)
        if stage == "fit" and hasattr(datamodule, "training_identity"):
            self._identity |= datamodule.training_identity()

    def training_step(self, batch: dict[str, Any], batch_index: int) -> Tensor:
        """Compute the loss of a batch of `collate_pairs`, in nats. A batch without a decode step has loss 0.

        Raises:
            RunError: The loss is not finite (see `check_loss` for the cost of this check).
        """
        states, agrees = self.examples(batch)
        if len(states):
            self.standardise.train()
            loss = self._loss(self._log_odds(states), agrees)
        else:
            loss = 0.0 * self.classifier.bias.sum()  # under DDP every process has a gradient
        where = f"step {self.trainer.global_step + 1} (epoch {self.trainer.current_epoch + 1})"
        agree = partial(self.trainer.strategy.reduce_boolean_decision, all=False)
        again = partial(self._again, batch)
        check_loss(loss, f"train/loss in {where}", batch.get("ids", ()), self, again, agree=agree)
        if not len(states):
            return loss
        self.log("train/loss", loss, prog_bar=True)
        return loss

    @torch.no_grad()
    def examples(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Compute what the classifier learns from: the layers' outputs and whether each predicts as the last one.

        Args:
            batch: Of `collate_pairs`.

        Returns:
            The outputs of all layers but the last in all decode steps, float32 [steps, layers - 1, d], and whether the
            layer's most likely token is the last layer's, BoolTensor [steps, layers - 1]. `steps` counts the decode
            steps of all rows; it is 0 where each reference has one token.
        """
        parts = decoder_parts(self.model)
        targets = batch["target_mask"]
        inputs = targets[:, :-1] & targets[:, 1:]  # (rows, length - 1): new tokens but the last
        with layer_outputs(self.model) as outputs:
            (parts.model if "source_ids" in batch else parts.body)(**at_full_depth(batch))
        states = torch.stack([output[:, :-1][inputs] for output in outputs], dim=1)  # (steps, layers, d)
        predicted = torch.stack([parts.logits(state).argmax(dim=-1) for state in states.unbind(dim=1)], dim=1)
        return states[:, :-1].float(), predicted[:, :-1] == predicted[:, -1:]

    def _log_odds(self, states: Tensor) -> Tensor:
        """Apply the classifier to standardised states: [steps, layers, d] to [steps, layers]."""
        flat = self.standardise(states.flatten(0, 1))  # (steps · layers, d)
        return self.classifier(flat).unflatten(0, states.shape[:2])

    def _loss(self, log_odds: Tensor, agrees: Tensor) -> Tensor:
        """Return the mean over the steps of the unweighted mean over the layers, in nats."""
        return binary_cross_entropy_with_logits(log_odds, agrees.to(log_odds.dtype))

    def _again(self, batch: dict[str, Any]) -> Tensor:
        states, agrees = self.examples(batch)
        return self._loss(self._log_odds(states), agrees)

    def on_validation_epoch_start(self) -> None:
        """Reset the metrics."""
        for metric in self._metrics():
            metric.reset()

    def validation_step(self, batch: dict[str, Any], batch_index: int) -> None:
        """Score the classifier on a batch, layer by layer."""
        states, agrees = self.examples(batch["pairs"])
        if not len(states):
            return
        self.standardise.eval()
        log_odds = self._log_odds(states)
        loss = self._loss(log_odds, agrees)
        again = partial(self._again, batch["pairs"])
        check_loss(loss, f"val/loss after step {self.trainer.global_step}", batch["ids"], self, again)
        self.loss_metric.update(loss, weight=len(states))
        for metric in self.layer_metrics.values():
            metric.update(log_odds.sigmoid(), agrees)  # type: ignore[operator]

    def on_validation_epoch_end(self) -> None:
        """Log the figures of all processes; keep those of each layer in `quality`."""
        reliability = self.layer_metrics["reliability"].compute()  # type: ignore[operator]
        count = reliability["count"].sum(dim=1)
        positives = (reliability["rate"].nan_to_num(0.0) * reliability["count"]).sum(dim=1)
        both = (positives > 0) & (positives < count)  # AUROC needs both kinds of cases
        auroc = self.layer_metrics["auroc"].compute().to(count.device).double()  # type: ignore[operator]
        self.quality = {
            "agreement": positives / count,
            "f1": self.layer_metrics["f1"].compute().to(count.device).double(),  # type: ignore[operator]
            "auroc": auroc.where(both, torch.nan),
            **reliability,
        }
        means = {name: self.quality[name].nanmean() for name in ("agreement", "f1", "auroc", "calibration_error")}
        figures = {"loss": self.loss_metric.compute(), **means}
        self.log_dict({f"val/{name}": value.float() for name, value in figures.items()}, prog_bar=True, sync_dist=True)

    def _metrics(self) -> list[Metric]:
        return [self.loss_metric, *self.layer_metrics.values()]  # type: ignore[list-item]

    def configure_optimizers(self) -> dict[str, Any]:
        """Return AdamW over the classifier and its learning rate schedule."""
        return adamw(
            self.classifier.parameters(),
            learning_rate=self.learning_rate,
            weight_decay=0.0,
            steps=self.trainer.estimated_stepping_batches,
            warmup=0.0,
            schedule="linear",
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the classifier's weights only; add the settings that a resumed run is checked against."""
        weights = checkpoint["state_dict"]
        checkpoint["state_dict"] = {name: weights[name] for name in self.trained_names()}
        checkpoint["hsdlab_exit_classifier"] = {"identity": self._identity}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another model, or a resumed run with other settings or data.

        Raises:
            RunError: The checkpoint does not fit. The message names each difference, or what the checkpoint lacks.
        """
        if "identity" not in checkpoint.get("hsdlab_exit_classifier", {}):
            raise RunError("The checkpoint is not an exit classifier's: expected one of train.py fit_exit_classifier.")
        check_same(checkpoint["hsdlab_exit_classifier"]["identity"], self._identity)
        check_weights(checkpoint["state_dict"], self, self.trained_names())
        if self.trainer.state.fn == TrainerFn.FITTING:
            check_optimizer(checkpoint)

    def trained_names(self) -> list[str]:
        """List what a checkpoint holds.

        Returns:
            Names in `state_dict` of the trained weights, and of the buffers that go with them.
        """
        return [name for name in self.state_dict() if not name.startswith("model.")]

    def folded(self) -> ExitClassifier:
        """Make the classifier for hidden states that are not standardised.

        Returns:
            A frozen copy whose weights contain the standardisation.
        """
        running = self.standardise.state_dict()
        folded = ExitClassifier(self.classifier.hidden_size)
        with torch.no_grad():
            weight = self.classifier.weight / (running["running_var"] + self.standardise.eps).sqrt()  # (1, d)
            folded.weight.copy_(weight)
            folded.bias.copy_(self.classifier.bias - weight @ running["running_mean"])
        return folded.requires_grad_(False)

    def export(self, path: str | PathLike[str]) -> None:
        """Write `folded` for CALM's measure "classifier".

        Args:
            path: The .safetensors file. An existing file is replaced once the new one is complete.

        Raises:
            RunError: A weight is not finite, or the file cannot be written.
        """
        folded = self.folded()
        for name, weight in folded.state_dict().items():
            check_finite(weight, f"{name} of the exit classifier")
        with whole_file(Path(path), tensor_bytes(folded.state_dict())) as unfinished, errors_of_the_system():
            folded.save(unfinished)
