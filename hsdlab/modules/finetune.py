"""FinetuneModule: train a model on prompts and references, at full depth or with skipped layers.

Longer than 300 lines, because a LightningModule is one class: its steps, its hooks for checkpoints and its options
stand together. What they compute has files of its own (losses, optimizer, lora, skip_aware, deep_supervision,
layer_dropout).
"""

import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from os import PathLike, fspath
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.trainer.states import TrainerFn
from peft import LoraConfig
from torch import Tensor, nn
from torchmetrics import MeanMetric
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hsdlab.decoding import Strategy, replay
from hsdlab.decoding.families import decoder_config, decoder_parts, plain_model
from hsdlab.decoding.layer_outputs import layer_outputs
from hsdlab.errors import RunError, UserError
from hsdlab.exits import ATTRIBUTE
from hsdlab.metrics import BLEU, ROUGE
from hsdlab.models.adapters import was_resized
from hsdlab.models.device_map import check_movable
from hsdlab.models.generation import generation
from hsdlab.models.load import weights_fingerprint
from hsdlab.models.merging import check_merges, few_logits
from hsdlab.models.quantization import is_quantised
from hsdlab.modules.checkpoint_files import tensor_bytes
from hsdlab.modules.deep_supervision import DeepSupervision, add_exits, supervised_loss, validation_loss
from hsdlab.modules.finite import check_finite, check_loss
from hsdlab.modules.idle_strategies import refuse_idle_strategies
from hsdlab.modules.layer_dropout import LayerDropout
from hsdlab.modules.lora import LoRA, add_lora, continue_lora, described
from hsdlab.modules.losses import agreement, distilled_loss, perplexity, reference_loss
from hsdlab.modules.model_inputs import at_full_depth, model_inputs
from hsdlab.modules.optimizer import LearningRateSchedule, adamw
from hsdlab.modules.skip_aware import SkipMixture
from hsdlab.modules.starting_weights import StartingWeights
from hsdlab.modules.trained_weights import check_optimizer, check_same, check_weights
from hsdlab.modules.weight_files import check_safetensors, errors_of_the_system
from hsdlab.records.files import whole_folder
from hsdlab.stored import plain_tensors

Draws = Literal["batch", "example"]
Teacher = Literal["itself", "start"]
_MOST = 1000  # AdamW moves each weight by about the learning rate: more is a slip


class FinetuneModule(LightningModule):
    """Fine-tunes a language model, whole or with LoRA, on the references of a data module.

    Logs train/loss, train/learning_rate, train/tokens_per_second (prompt and reference, per process), val/loss (mean
    over the references' tokens, at full depth) and val/perplexity. A checkpoint holds the trained weights only. A run
    that resumes from it continues as if it had not been interrupted, dropout and draws included. It is refused if its
    model, settings or data are different. `export` writes what other programs load.

    Skip-aware training: with `skip_strategies`, each batch, or each sequence, draws one strategy and computes its loss
    with the layers that decoding under it would run (`replay`). val/skip_loss is val/loss under the strategies. They
    are drawn for each sequence with their final weights, the same in each validation. val/acceptance is the share of
    the references' tokens for which they predict the token that full depth predicts. With `deep_supervision`,
    val/supervised_loss is the weighted mean over all exits and the last layer. docs/training.md says when to use which
    option.

    Args:
        model: A transformers model, decoder-only or encoder-decoder.
        tokenizer: Its tokenizer.
        max_new_tokens: References are cut to so many tokens; T of the strategies' schedules.
        lora: Train LoRA's matrices only, with any option of `peft.LoraConfig`. By default all weights are trained.
        initial_adapter: Train the matrices of this LoRA adapter further, with its own rank and target layers: a folder,
            or the name of an installed one ("embedded:smollm2-135m-e2e-skip-aware"). It takes the place of ``lora``.
        learning_rate: Peak of AdamW's learning rate; 5e-5 as in the HSD paper.
        weight_decay: AdamW's weight decay for matrices; 0.01 is torch's default. Norms and biases have none.
        warmup: Share of the steps, 0 to 1, in which the learning rate rises from 0.
        learning_rate_schedule: The learning rate after warm-up, by the names of `transformers.get_scheduler`. linear,
            the default, and cosine fall to 0.
        skip_strategies: Strategies to train with; their layers must be known before a step. Include FullDepth to keep
            the quality at full depth.
        skip_weights: How often each strategy is drawn, relative to the sum. By default all are drawn equally often.
        final_skip_weights: Weights at the end of training. The draws move from skip_weights to them linearly. By
            default they do not change.
        skip_draws: One draw for each "batch", the same in all processes, or for each "example".
        distillation: Share of the loss of sequences that skip layers, 0 to 1, that is the divergence from the teacher's
            logits at full depth. The rest is cross-entropy with the reference. It takes a second forward pass, without
            gradient.
        teacher: Who teaches in distillation. "itself" is the model at full depth, as it is in this step. "start" is the
            model at full depth as it was before the training. Sequences at full depth then learn from it too, so that
            full depth stays what it was while the drafts of `Verified` come to agree with it.
        seed: Seed of the draws and of dropout.
        generate_every: Decode in every so many validations, greedily, under the Trainer's skip strategy if there is
            one, and log val/rouge1 … val/bleu4. 0 never decodes; a strategy that skips is then refused.
        generate_batches: How many batches to decode in such a validation, per process.
        deep_supervision: Train the outputs of layers below the last, the exits, to predict the next token, or what the
            last layer predicts. train/loss is then a weighted mean over the layers; val/loss stays the last layer's.
            The exits are exported with the model. With skip_strategies, an exit learns from the tokens whose drawn
            strategy runs its layer, and tokens exit within the strategy's layers: for `Compose`. By default only the
            last layer is supervised.
        layer_dropout: Skip layers at random in each example. With deep_supervision it is LayerSkip's training, in
            which an exit also learns from examples that skip its layer. It cannot be combined with skip_strategies. By
            default every layer runs.

    Raises:
        UserError: A number out of its range, a LoRA target that matches nothing, an adapter that is not LoRA or does
            not fit, a strategy whose layers are not known before a step, or a tokenizer whose end of sequence does not
            end `model.generate`. In a Trainer: a skip strategy in a module that never decodes.

    Example::

        model, tokenizer = load_model("embedded:smollm2-135m")
        module = FinetuneModule(model, tokenizer, max_new_tokens=30, lora=LoRA(), skip_strategies=[FullDepth(), HSD()])
        Trainer(max_epochs=3, gradient_clip_val=1.0).fit(module, datamodule=Docstrings())
        module.export("adapter")
    """

    validates_loss = True  # the data module gives validation batches pairs for the loss

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        max_new_tokens: int = 50,
        lora: LoRA | None = None,
        initial_adapter: str | None = None,
        learning_rate: float = 5e-5,
        weight_decay: float = 0.01,
        warmup: float = 0.05,
        learning_rate_schedule: LearningRateSchedule = "linear",
        skip_strategies: Sequence[Strategy] = (),
        skip_weights: Sequence[float] | None = None,
        final_skip_weights: Sequence[float] | None = None,
        skip_draws: Draws = "batch",
        distillation: float = 0.0,
        teacher: Teacher = "itself",
        seed: int = 0,
        generate_every: int = 0,
        generate_batches: int = 2,
        deep_supervision: DeepSupervision | None = None,
        layer_dropout: LayerDropout | None = None,
    ) -> None:
        super().__init__()
        check_movable(model, "FinetuneModule")
        _check_end_of_sequence(model, tokenizer)
        _check(max_new_tokens >= 1, f"max_new_tokens={max_new_tokens}: expected 1 or more.")
        _check(0 < learning_rate <= _MOST, f"learning_rate={learning_rate}: expected more than 0, and {_MOST} at most.")
        _check(0 <= weight_decay <= _MOST, f"weight_decay={weight_decay}: expected 0 or more, and {_MOST} at most.")
        _check(0 <= warmup <= 1, f"warmup={warmup}: expected a share of the steps, 0 to 1.")
        _check(
            learning_rate_schedule in get_args(LearningRateSchedule),
            f"learning_rate_schedule={learning_rate_schedule!r}: expected one of "
            f"{', '.join(get_args(LearningRateSchedule))}.",
        )
        _check(generate_every >= 0, f"generate_every={generate_every}: expected 0 (never) or more.")
        _check(generate_batches >= 1, f"generate_batches={generate_batches}: expected 1 or more.")
        _check(skip_draws in ("batch", "example"), f"skip_draws={skip_draws!r}: expected batch or example.")
        _check(0 <= distillation <= 1, f"distillation={distillation}: expected a share of the loss, 0 to 1.")
        _check(teacher in get_args(Teacher), f"teacher={teacher!r}: expected {' or '.join(get_args(Teacher))}.")
        _check(teacher == "itself" or distillation > 0, f"teacher={teacher}: it teaches nothing without distillation.")
        _check(
            lora is not None or initial_adapter is not None or not is_quantised(model),
            "The model has quantised weights, which cannot be trained: give lora, whose matrices are trained beside "
            "them (--model.lora.r=16).",
        )
        _check(lora is None or initial_adapter is None, "initial_adapter has LoRA's options itself: leave lora out.")
        _check(
            not skip_strategies or layer_dropout is None,
            "skip_strategies cannot be combined with layer_dropout: both say which layers run; leave one out.",
        )
        _check(
            not distillation or deep_supervision is None,
            "distillation cannot be combined with deep_supervision, which has its own (deep_supervision.distillation).",
        )
        self.mixture = None
        if skip_strategies:
            self.mixture = SkipMixture(model, skip_strategies, skip_weights, max_new_tokens, seed, final_skip_weights)
        else:
            _check(not skip_weights, "skip_weights: there are no skip_strategies to draw.")
            _check(not final_skip_weights, "final_skip_weights: there are no skip_strategies to draw.")
            _check(not distillation, "distillation: there are no skip_strategies that could learn from full depth.")
        self._base_weights = weights_fingerprint(model)
        self.model: nn.Module = model
        self.lora: LoraConfig | None = lora
        if initial_adapter is not None:
            self.model, self.lora = continue_lora(model, initial_adapter, tokenizer)
        elif lora is not None:
            self.model = add_lora(model, lora)
        self._initial_weights = None if initial_adapter is None else weights_fingerprint(self.model)
        if deep_supervision is not None:
            add_exits(plain_model(self.model), deep_supervision)
            self._check_exits_run(deep_supervision)
        self._start = StartingWeights(plain_model(self.model)) if teacher == "start" else None
        self.model.train()  # transformers loads in eval mode and Lightning keeps it
        self.tokenizer = tokenizer
        self.max_new_tokens = max_new_tokens
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.warmup = warmup
        self.learning_rate_schedule: LearningRateSchedule = learning_rate_schedule
        self.skip_draws: Draws = skip_draws
        self.distillation = distillation
        self.teacher: Teacher = teacher
        self.seed = seed
        self.generate_every = generate_every
        self.generate_batches = generate_batches
        self.deep_supervision = deep_supervision
        self.layer_dropout = layer_dropout
        self.strict_loading = False  # checkpoints hold the trained weights only
        self.validation_loss = MeanMetric(nan_strategy="error")  # by default it leaves a NaN out
        self.skip_validation_loss = MeanMetric(nan_strategy="disable")
        self.supervised_validation_loss = MeanMetric(nan_strategy="error")
        self.acceptance = MeanMetric(nan_strategy="error")
        self.text_metrics = nn.ModuleList([ROUGE(), BLEU()])
        self._validations = 0
        self._ids_before: Sequence[str] = ()  # of the batch before
        self._last_batch_end_s: float | None = None
        self._identity = self._model_identity()

    # Training ------------------------------------------------------------------------------------------------

    def on_train_batch_start(self, batch: dict[str, Any], batch_index: int) -> None:
        """Give each batch its own random state, so that a resumed run draws the same dropout."""
        torch.manual_seed(random.Random(f"{self.seed} {self._batch_number} {self.global_rank}").getrandbits(63))

    def training_step(self, batch: dict[str, Any], batch_index: int) -> Tensor:
        """Compute the loss of a batch of `collate_pairs` under the strategies that it draws, in nats.

        Raises:
            RunError: The loss is not finite (see `check_loss` for the cost of this check).
        """
        compute: Callable[[], Tensor]
        if self.deep_supervision is None:
            compute = partial(self.training_loss, batch, self._draw(rows=len(batch["input_ids"])))
        else:
            compute = partial(self._supervised_loss, batch, self.deep_supervision)
        loss = compute()
        where = f"step {self.trainer.global_step + 1} (epoch {self.trainer.current_epoch + 1})"
        ids = batch.get("ids", ())
        agree = partial(self.trainer.strategy.reduce_boolean_decision, all=False)
        check_loss(loss, f"train/loss in {where}", ids, self.model, compute, self._ids_before, agree)
        self._ids_before = ids
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Compute the gradients.

        Raises:
            RunError: A gradient is NaN, found by --trainer.detect_anomaly.
        """
        try:
            super().backward(loss, *args, **kwargs)
        except RuntimeError as error:
            if "nan values" not in str(error):
                raise
            raise RunError(
                f"A gradient in step {self.trainer.global_step + 1} is NaN for the examples "
                f"{', '.join(self._ids_before)}: {error} Lower the learning rate (--model.learning_rate), or look for "
                "what is unusual in these examples. The last checkpoint was written before this step."
            ) from error

    def _supervised_loss(self, batch: dict[str, Any], supervision: DeepSupervision) -> Tensor:
        num_layers = decoder_parts(self.model).num_layers
        executed = self._executed(batch, self._draw(rows=len(batch["input_ids"])))
        draws = random.Random(f"{self.seed} {self._batch_number} exiting")  # the same in other processes
        if draws.random() < supervision.exiting:
            if executed is None:
                executed = torch.ones(*batch["input_ids"].shape, num_layers, dtype=torch.bool)
            executed = supervision.draw_exits(executed, batch["target_mask"])
        with layer_outputs(self.model) as outputs:
            logits = self.training_logits(batch, executed=executed)
        weights = supervision.layer_weights(num_layers, self._batch_number)
        return supervised_loss(self.model, outputs, logits, batch, weights, supervision, executed)

    def _check_exits_run(self, supervision: DeepSupervision) -> None:
        """Refuse exits that no strategy of the mixture runs."""
        exits = supervision.exits(decoder_parts(self.model).num_layers)
        idle = [] if self.mixture is None else [layer for layer in exits if not self.mixture.runs[layer]]
        _check(
            not idle,
            f"deep_supervision: none of the skip_strategies runs the layers {idle}, so exits there learn nothing. Add "
            "FullDepth, or give deep_supervision.layers that a strategy runs.",
        )

    def _draw(self, rows: int) -> list[int] | None:
        """Draw the strategy of the batch, or of each of its sequences."""
        if self.mixture is None:
            return None
        progress = self.trainer.global_step / self.trainer.estimated_stepping_batches
        if self.skip_draws == "batch":
            return self.mixture.draw(self._batch_number, progress)
        return self.mixture.draw(self._batch_number, progress, rows, self.global_rank)

    def loss(self, batch: dict[str, Any], drawn: Sequence[int] | None = None) -> Tensor:
        """Compute the mean cross-entropy of the references' tokens in a batch.

        Args:
            batch: Of `collate_pairs`.
            drawn: Index of the skip strategy of each sequence, or one for all. None for full depth.

        Returns:
            A scalar in nats, float32 or wider.
        """
        logits = self.training_logits(batch, drawn)
        return reference_loss(logits, *_last(logits.shape[1], batch))

    def training_loss(self, batch: dict[str, Any], drawn: Sequence[int] | None = None) -> Tensor:
        """Compute what a training step minimises: `loss`, mixed with the divergence from full depth in distillation.

        Args:
            batch: As for `loss`.
            drawn: As for `loss`. Sequences whose strategy skips no layer learn from the reference alone, unless the
                teacher is the model as it was before the training.

        Returns:
            A scalar in nats, float32 or wider.
        """
        if drawn is None or self.mixture is None or not self.distillation:
            return self.loss(batch, drawn)
        taught = self.mixture.skips[drawn]  # (rows or 1,)
        if self._start is not None:
            taught = torch.ones_like(taught)
        if not taught.any():
            return self.loss(batch, drawn)
        with torch.no_grad():
            teacher = self.training_logits(batch) if self._start is None else self._logits_before(batch, self._start)
        logits = self.training_logits(batch, drawn)
        share = (self.distillation * taught.float()).expand(len(logits)).to(logits.device)
        return distilled_loss(logits, teacher, share, *_last(logits.shape[1], batch))

    def training_logits(
        self, batch: dict[str, Any], drawn: Sequence[int] | None = None, executed: Tensor | None = None
    ) -> Tensor:
        """Compute the logits of a teacher-forced batch.

        Args:
            batch: As for `loss`.
            drawn: As for `loss`. With None, layer dropout still applies in training mode.
            executed: The layers that each token runs, in place of `drawn`: BoolTensor [rows, length, layers], or
                [rows, length, layers, 2] for attention and MLP apart.

        Returns:
            Logits [rows, scored, vocabulary] of the last positions. `scored` is the length of the longest reference
            plus 1. The logits at a position predict the token at the next one.
        """
        with _head_at_the_last(_scored(batch), self.model):
            return self._logits(batch, self._executed(batch, drawn) if executed is None else executed)

    def _logits_before(self, batch: dict[str, Any], start: StartingWeights) -> Tensor:
        """Compute what `training_logits` gave at full depth before the training."""
        with _head_at_the_last(_scored(batch), self.model):
            return start.logits(plain_model(self.model), **at_full_depth(batch))

    def _executed(self, batch: dict[str, Any], drawn: Sequence[int] | None) -> Tensor | None:
        """Give the layers of each token under the drawn strategies; None for full depth."""
        if drawn is None or self.mixture is None:
            return None
        return self.mixture.executed(drawn, batch["target_mask"], batch["attention_mask"])

    def _logits(self, batch: dict[str, Any], executed: Tensor | None) -> Tensor:
        if self.layer_dropout is not None and self.training:
            kept = self.layer_dropout.draw(batch["input_ids"], decoder_parts(self.model).num_layers)
            executed = kept if executed is None else kept & executed
        if executed is None:
            return plain_model(self.model)(**at_full_depth(batch)).logits
        return replay(self.model, **model_inputs(batch), executed=executed)

    def on_train_batch_end(self, outputs: Any, batch: dict[str, Any], batch_index: int) -> None:
        """Log the learning rate of the step, and the throughput since the batch before."""
        now_s = time.perf_counter()
        if self._last_batch_end_s is not None:
            tokens = sum(batch[name].sum() for name in ("attention_mask", "source_mask") if name in batch)
            self.log("train/tokens_per_second", tokens / (now_s - self._last_batch_end_s), prog_bar=True)
        self._last_batch_end_s = now_s
        self.log("train/learning_rate", self.trainer.optimizers[0].param_groups[0]["lr"])

    @property
    def _batch_number(self) -> int:
        """Number of the batch, counted from the start of the training over all epochs, also of runs before."""
        return self.trainer.fit_loop.total_batch_idx

    def configure_optimizers(self) -> dict[str, Any]:
        """Return AdamW over the trained weights and its learning rate schedule over all steps."""
        return adamw(
            (parameter for parameter in self.parameters() if parameter.requires_grad),
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            steps=self.trainer.estimated_stepping_batches,
            warmup=self.warmup,
            schedule=self.learning_rate_schedule,
        )

    # Validation ----------------------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        """Reset the metrics; decide whether this validation decodes."""
        self._last_batch_end_s = None  # validation is no training time
        losses = (self.validation_loss, self.skip_validation_loss, self.supervised_validation_loss)
        for metric in (*losses, self.acceptance, *self.text_metrics):
            metric.reset()
        self._decodes = False
        if not self.trainer.sanity_checking:
            self._validations += 1
            due = self.trainer.state.fn == "validate" or self._validations % max(1, self.generate_every) == 0
            self._decodes = self.generate_every > 0 and due

    def validation_step(self, batch: dict[str, Any], batch_index: int) -> None:
        """Compute the loss of a batch, at full depth and under a fixed draw; decode the batch if that is due."""
        if not batch["ids"]:
            return  # there are more processes than examples
        pairs = batch["pairs"]
        tokens = pairs["target_mask"].sum()
        watched: AbstractContextManager[dict[int, Tensor]] = nullcontext({})
        if self.deep_supervision is not None:
            watched = layer_outputs(self.model)
        with watched as outputs:
            full = self.training_logits(pairs)
        self.validation_loss.update(self._finite_loss(batch, full, None, "val/loss"), weight=tokens)
        if self.deep_supervision is not None:
            loss = validation_loss(self.model, outputs, full, pairs, self.deep_supervision)
            self.supervised_validation_loss.update(loss, weight=tokens)
        if self.mixture is not None:
            number = batch_index * self.trainer.world_size + self.global_rank  # as a single process counts
            drawn = self.mixture.draw(number, progress=1.0, rows=len(pairs["input_ids"]))
            skipping = self.training_logits(pairs, drawn)
            self.skip_validation_loss.update(self._finite_loss(batch, skipping, drawn, "val/skip_loss"), weight=tokens)
            drafted = self.mixture.skips[drawn][:, None].to(self.device) & pairs["target_mask"][:, -full.shape[1] :]
            self.acceptance.update(agreement(skipping, full, drafted).float())
        if self._decodes and batch_index < self.generate_batches:
            texts = self._generate(batch)
            for metric in self.text_metrics:
                metric.update(texts, batch["references"])  # type: ignore[operator]

    def _finite_loss(self, batch: dict[str, Any], logits: Tensor, drawn: Sequence[int] | None, name: str) -> Tensor:
        pairs = batch["pairs"]
        loss = reference_loss(logits, *_last(logits.shape[1], pairs))
        again = partial(self.loss, pairs, drawn)
        check_loss(loss, f"{name} after step {self.trainer.global_step}", batch["ids"], self.model, again)
        return loss

    def _generate(self, batch: dict[str, Any]) -> list[str]:
        model = plain_model(self.model)
        greedy = {"max_new_tokens": self.max_new_tokens, "num_beams": 1, "do_sample": False}
        options = generation(model, greedy, self.tokenizer).options
        with torch.autocast(self.device.type, enabled=False):  # it would cast all weights again in every step
            sequences = model.generate(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], **options
            )  # (rows, prompt + new)
        prompt_tokens = 1 if model.config.is_encoder_decoder else batch["input_ids"].shape[1]
        new_tokens = sequences[:, prompt_tokens:]
        return [text.strip() for text in self.tokenizer.batch_decode(new_tokens, skip_special_tokens=True)]

    def on_validation_epoch_end(self) -> None:
        """Log the figures of all processes."""
        loss = self.validation_loss.compute()
        self.log_dict({"val/loss": loss, "val/perplexity": perplexity(loss)}, prog_bar=True, sync_dist=True)
        if self.deep_supervision is not None:
            self.log("val/supervised_loss", self.supervised_validation_loss.compute(), prog_bar=True, sync_dist=True)
        if self.mixture is not None:
            self.log("val/skip_loss", self.skip_validation_loss.compute(), prog_bar=True, sync_dist=True)
            if (acceptance := self.acceptance.compute()).isfinite():  # not in a validation that drew full depth alone
                self.log("val/acceptance", acceptance, prog_bar=True, sync_dist=True)
        if self._decodes:
            for metric in self.text_metrics:
                figures = metric.compute()  # type: ignore[operator]
                self.log_dict({f"val/{name}": value.float() for name, value in figures.items()}, sync_dist=True)

    # Checkpoints and export ----------------------------------------------------------------------------------

    def check_callbacks(self, callbacks: Iterable[Callback]) -> None:
        """Refuse a strategy that skips layers if this module never decodes (generate_every=0).

        Args:
            callbacks: Of the Trainer. Those that are no strategy are ignored.

        Raises:
            UserError: A strategy would have no effect; the message names it.
        """
        if not self.generate_every:
            refuse_idle_strategies(callbacks, self.model, self.max_new_tokens)

    def setup(self, stage: str) -> None:
        """Check the Trainer's skip strategy; note which settings and data a checkpoint must share with this run."""
        self.check_callbacks(self.trainer.callbacks)
        self._identity = self._model_identity()
        if stage == "fit":
            self._identity |= {
                "weights of the base model": self._base_weights,
                "learning_rate": self.learning_rate,
                "weight_decay": self.weight_decay,
                "warmup": self.warmup,
                "learning_rate_schedule": self.learning_rate_schedule,
                "skip_strategies": repr(self.mixture and self.mixture.strategies),
                "skip_weights": repr(self.mixture and self.mixture.weights),
                "final_skip_weights": repr(self.mixture and self.mixture.final_weights),
                "skip_draws": self.skip_draws,
                "distillation": self.distillation,
                "teacher": self.teacher,
                "deep_supervision": self.deep_supervision and repr(self.deep_supervision),
                "layer_dropout": self.layer_dropout and repr(self.layer_dropout),
                "seed": self.seed,
                "accumulate_grad_batches": self.trainer.accumulate_grad_batches,
                "processes": self.trainer.world_size,
            }
            datamodule: Any = getattr(self.trainer, "datamodule", None)
            if hasattr(datamodule, "training_identity"):
                self._identity |= datamodule.training_identity()

    def _model_identity(self) -> dict[str, Any]:
        config = decoder_config(plain_model(self.model).config)
        sizes = f"{config.num_hidden_layers} layers, width {config.hidden_size}, vocabulary {config.vocab_size}"
        return {
            "model": f"{config.model_type} ({sizes})",
            "lora": self.lora and described(self.lora),
            "weights of the initial adapter": self._initial_weights,
            **({"weights of the base model": self._base_weights} if self.lora else {}),
            "max_new_tokens": self.max_new_tokens,
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the trained weights only; add the settings that a resumed run is checked against."""
        weights = checkpoint["state_dict"]
        checkpoint["state_dict"] = {name: weights[name] for name in self.trained_names()}
        checkpoint["hsdlab"] = {"identity": self._identity, "validations": self._validations}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another model, or a resumed run with other settings or data.

        Raises:
            RunError: The checkpoint does not fit. The message names each difference, or what the checkpoint lacks.
        """
        if "identity" not in checkpoint.get("hsdlab", {}):
            raise RunError("The checkpoint is not one of hsdlab's fine-tuning: expected one that train.py fit wrote.")
        check_same(checkpoint["hsdlab"]["identity"], self._identity)
        check_weights(checkpoint["state_dict"], self, self.trained_names())
        if self.trainer.state.fn == TrainerFn.FITTING:
            check_optimizer(checkpoint)
        self._validations = checkpoint["hsdlab"]["validations"]

    def trained_names(self) -> list[str]:
        """List what a checkpoint holds.

        Returns:
            Names in `state_dict` of the weights that are trained.
        """
        return [name for name, parameter in self.named_parameters() if parameter.requires_grad]

    def export(self, folder: str | PathLike[str]) -> None:
        """Write a folder that `load_model`, transformers and peft load: the model, or with LoRA the adapter.

        Args:
            folder: An earlier export there is replaced once the new one is complete.

        Raises:
            UserError: The adapter, merged as `load_model` merges it, gives another model than the trained one.
            RunError: A weight or an output of the model is not finite, or the folder cannot be written.
        """
        model = plain_model(self.model)
        for name, weight in self.model.named_parameters():
            for plain in plain_tensors(weight):
                check_finite(plain, f"{name}, a weight of the model to export,")
        was_training = self.model.training
        logits = few_logits(self.model.eval())
        self.model.train(was_training)
        check_finite(logits, "The output of the model to export")
        exported = model if self.lora is None else self.model
        trained = [weight for weight in exported.parameters() if self.lora is None or weight.requires_grad]
        size_bytes = tensor_bytes([weight.data for weight in trained])
        with whole_folder(Path(folder), size_bytes) as unfinished, errors_of_the_system():
            if self.lora is None:
                weights = {name: weight for name, weight in model.state_dict().items() if ATTRIBUTE not in name}
                model.save_pretrained(fspath(unfinished), state_dict=weights)
            else:
                if not is_quantised(model):  # load_model leaves the adapter beside quantised weights
                    check_merges(self.model, f"the adapter for {fspath(folder)}")
                # with "auto", peft would ask the hub for the base model's vocabulary
                self.model.save_pretrained(  # type: ignore[operator]
                    fspath(unfinished), save_embedding_layers=was_resized(model)
                )
                model.generation_config.save_pretrained(fspath(unfinished))
            if (exits := decoder_parts(model).exits) is not None:
                exits.save(unfinished)
            self.tokenizer.save_pretrained(fspath(unfinished))
            check_safetensors(unfinished)


def _scored(batch: dict[str, Any]) -> int:
    """Return the number of last positions whose logits count: the length of the longest reference plus 1."""
    return int(batch["target_mask"].any(dim=0).sum()) + 1


def _last(positions: int, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Return the tokens and the references' mask at the last positions, both [rows, positions]."""
    return batch["input_ids"][:, -positions:], batch["target_mask"][:, -positions:]


@contextmanager
def _head_at_the_last(positions: int, model: nn.Module) -> Iterator[None]:
    """Apply the head to the last positions only: over a whole prompt it costs as much as many layers."""

    def cut(head: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        # (rows, length, d) to (rows, scored, d). Contiguous: otherwise torch copies a frozen head once for each row
        return (arguments[0][:, -positions:].contiguous(), *arguments[1:])

    handle = decoder_parts(model).head.register_forward_pre_hook(cut)
    try:
        yield
    finally:
        handle.remove()


def _check_end_of_sequence(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a model that would learn one end-of-sequence token and stop at another."""
    ends = model.generation_config.eos_token_id
    stops = ends if isinstance(ends, list) else [ends]
    _check(
        tokenizer.eos_token_id is not None and tokenizer.eos_token_id in stops,
        f"The tokenizer's end-of-sequence token is {tokenizer.eos_token_id}, but model.generate stops at {ends}: set "
        "model.generation_config.eos_token_id = tokenizer.eos_token_id.",
    )


def _check(holds: bool, message: str) -> None:
    if not holds:
        raise UserError(message)
