"""ExitClassifierModule: train CALM's early-exit classifier on a model that stays as it is."""

from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torchmetrics import MeanMetric, Metric
from torchmetrics.classification import MultilabelAUROC, MultilabelF1Score
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hsdlab.decoding.exit_classifier import ExitClassifier
from hsdlab.decoding.families import decoder_parts, position_ids
from hsdlab.decoding.layer_outputs import layer_outputs
from hsdlab.errors import UserError
from hsdlab.metrics.reliability import Reliability
from hsdlab.modules.optimizer import adamw


class ExitClassifierModule(LightningModule):
    """Trains one linear layer to tell from a layer's output whether its prediction is already the last layer's.

    CALM (arXiv 2207.07061, section 3.5): a second stage after fine-tuning, the model frozen; binary cross-entropy at
    every layer but the last, their unweighted mean; teacher-forced on the references, at the inputs of decode steps.
    While it trains, the hidden states are standardised by their mean and variance over all layers, since their numbers
    differ in size by orders of magnitude; `folded` has that in the weights.

    Logs train/loss, and on the validation split val/loss, val/f1, val/auroc and val/calibration_error (means over the
    layers) and val/agreement, how often a layer's prediction is the last one's. `quality` holds them layer by layer.

    Args:
        model: A decoder-only transformers model.
        tokenizer: Its tokenizer.
        max_new_tokens: References are cut to so many tokens.
        learning_rate: Of AdamW, at its peak; it falls to 0 over the run.

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
        if max_new_tokens < 2:
            raise UserError(f"max_new_tokens={max_new_tokens}: expected 2 or more, for there to be a decode step.")
        if not learning_rate > 0:
            raise UserError(f"learning_rate={learning_rate}: expected more than 0.")
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
        self.loss_metric = MeanMetric()
        self.layer_metrics = nn.ModuleDict(
            {
                "f1": MultilabelF1Score(exits, average="none"),
                "auroc": MultilabelAUROC(exits, average="none", thresholds=200),
                "reliability": Reliability(exits),
            }
        )
        self.quality: dict[str, Tensor] = {}

    def training_step(self, batch: dict[str, Tensor], batch_index: int) -> Tensor:
        """Compute the loss of a batch of `collate_pairs`; one of a batch without a decode step is 0."""
        states, agrees = self.examples(batch)
        if not len(states):
            return 0.0 * self.classifier.bias.sum()  # under DDP every process has a gradient
        self.standardise.train()
        loss = self._loss(self._log_odds(states), agrees)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    @torch.no_grad()
    def examples(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return what the classifier learns from in a batch of `collate_pairs`.

        Returns:
            The outputs of the layers but the last in all decode steps, [steps, layers - 1, d], and where the layer's
            prediction is the last layer's, BoolTensor [steps, layers - 1].
        """
        parts = decoder_parts(self.model)
        mask, targets = batch["attention_mask"], batch["target_mask"]
        inputs = targets[:, :-1] & targets[:, 1:]  # (rows, length - 1): new tokens but the last
        with layer_outputs(self.model) as outputs:
            parts.body(
                input_ids=batch["input_ids"], attention_mask=mask, position_ids=position_ids(mask), use_cache=False
            )
        states = torch.stack([output[:, :-1][inputs] for output in outputs], dim=1)  # (steps, layers, d)
        predicted = torch.stack([parts.logits(state).argmax(dim=-1) for state in states.unbind(dim=1)], dim=1)
        return states[:, :-1].float(), predicted[:, :-1] == predicted[:, -1:]

    def _log_odds(self, states: Tensor) -> Tensor:
        """The classifier on standardised states: [steps, layers, d] to [steps, layers]."""
        flat = self.standardise(states.flatten(0, 1))  # (steps · layers, d)
        return self.classifier(flat).unflatten(0, states.shape[:2])

    def _loss(self, log_odds: Tensor, agrees: Tensor) -> Tensor:
        """Mean over the steps of the unweighted mean over the layers."""
        return binary_cross_entropy_with_logits(log_odds, agrees.to(log_odds.dtype))

    def on_validation_epoch_start(self) -> None:
        """Forget what an earlier validation saw."""
        for metric in self._metrics():
            metric.reset()

    def validation_step(self, batch: dict[str, Any], batch_index: int) -> None:
        """Score the classifier on a batch, layer by layer."""
        states, agrees = self.examples(batch["pairs"])
        if not len(states):
            return
        self.standardise.eval()
        log_odds = self._log_odds(states)
        self.loss_metric.update(self._loss(log_odds, agrees), weight=len(states))
        for metric in self.layer_metrics.values():
            metric.update(log_odds.sigmoid(), agrees)  # type: ignore[operator]

    def on_validation_epoch_end(self) -> None:
        """Log the figures of all processes; keep those of each layer in `quality`."""
        reliability = self.layer_metrics["reliability"].compute()  # type: ignore[operator]
        count = reliability["count"].sum(dim=1)
        positives = (reliability["rate"].nan_to_num(0.0) * reliability["count"]).sum(dim=1)
        both = (positives > 0) & (positives < count)  # without both kinds of cases there is no order to get right
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
        """Return AdamW over the classifier, and its falling learning rate."""
        return adamw(
            self.classifier.parameters(),
            learning_rate=self.learning_rate,
            weight_decay=0.0,
            steps=self.trainer.estimated_stepping_batches,
            warmup=0.0,
            schedule="linear",
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the classifier, not the model."""
        weights = checkpoint["state_dict"]
        checkpoint["state_dict"] = {name: weights[name] for name in weights if not name.startswith("model.")}

    def folded(self) -> ExitClassifier:
        """Return the classifier for states as they are, the standardisation in its weights."""
        running = self.standardise.state_dict()
        folded = ExitClassifier(self.classifier.hidden_size)
        with torch.no_grad():
            weight = self.classifier.weight / (running["running_var"] + self.standardise.eps).sqrt()  # (1, d)
            folded.weight.copy_(weight)
            folded.bias.copy_(self.classifier.bias - weight @ running["running_mean"])
        return folded.requires_grad_(False)
