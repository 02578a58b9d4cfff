"""DecodeModule: decode a data set, score every example, write each prediction to a file.

Longer than 300 lines, because a LightningModule is one class: its options, its hooks and its steps stand together.
"""

import copy
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse.typing import PositiveInt
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hsdlab.decoding import AppliedRun, DecodeOutput, active_run
from hsdlab.decoding.cost import decode_cost
from hsdlab.decoding.finite import NotFiniteLogitsError
from hsdlab.decoding.sub_layers import depth_sum
from hsdlab.errors import RunError, UserError, faults_of_the_run
from hsdlab.metrics.base import TextMetric
from hsdlab.metrics.bleu import BleuTokenizer
from hsdlab.metrics.rouge import TokenizerName
from hsdlab.models.device_map import check_movable
from hsdlab.models.generation import Generation, check_generate_kwargs, generation
from hsdlab.models.load import Quantization, load_model
from hsdlab.modules.text_metrics import ENCODER, METRICS, MetricName, MetricOptions, text_metric
from hsdlab.records.document import to_plain
from hsdlab.records.example import Batch, ExampleRecord, batch_costs
from hsdlab.records.layer_ranges import layer_ranges
from hsdlab.records.predictions import Batches, PredictionFile, check_same_examples

Dtype = Literal["float32", "bfloat16", "float16", "float64", "auto"]


class DecodeModule(LightningModule):
    """Decodes the prompts of a data module under the skip strategy among the Trainer's callbacks.

    `validate` and `test` log the corpus figures of the metrics (`val/rougeL`, `test/bleu4`, ...). `predict` returns the
    records. All three score each example. If `predictions` names a file, they write the record of each example there
    as soon as its batch is decoded, one JSON object a line (see `PredictionFile` and `ExampleRecord`).

    All figures can be computed again from the records. Where the attribute `resume` is set, a run resumes from the
    file: batches in it are not decoded again and count as if they had been. In sampling, each batch has a random state
    of its own, so the samples do not depend on where a run was interrupted.

    Args:
        model: A transformers model, decoder-only or encoder-decoder.
        tokenizer: Its tokenizer.
        max_new_tokens: The most tokens that are decoded for an example; T of the strategies' schedules.
        num_beams: Beams of beam search, 4 as in the HSD paper. 1 is greedy decoding, or sampling with
            `generate_kwargs={"do_sample": true}`.
        generate_kwargs: More options of transformers' `generate`, such as `{"do_sample": true, "top_p": 0.9}`. The
            checkpoint's own generation config gives special tokens and stop strings, nothing else
            (`hsdlab.models.generation`).
        metrics: Which of "rouge", "bleu" and "bertscore" to compute.
        bertscore_encoder: Encoder of BERTScore: a local folder, or an embedded model.
        predictions: The file to write. A run replaces it unless it resumes. None writes no file.
        rouge_tokenizer: "default", rouge_score's own, which knows English letters and digits only; "unicode" for texts
            of any script.
        rouge_lsum: Score ROUGE-Lsum too: ROUGE-L of summaries that have one sentence a line.
        bleu_tokenizer: sacrebleu's tokenizer: "13a", "intl", "zh", "char" or "none".
        compile: Compile decode steps, and capture them as CUDA graphs on a GPU (`hsdlab.generate`). Only for schedules
            whose sets of layers shrink, such as HSD's and SkipDecode's.

    Raises:
        UserError: A number below 1, an unknown metric, or an option in `generate_kwargs` that has a parameter here,
            does not exist or cannot be combined with skipped layers.
        FileNotFoundError: The encoder's folder is missing.

    Example::

        model, tokenizer = load_model("embedded:smollm2-135m")
        module = DecodeModule(model, tokenizer, max_new_tokens=30, predictions="predictions.jsonl")
        Trainer(callbacks=[HSD()]).test(module, datamodule=Docstrings(limit=32))
    """

    model: PreTrainedModel

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        max_new_tokens: PositiveInt = 50,
        num_beams: PositiveInt = 4,
        generate_kwargs: dict[str, Any] | None = None,
        metrics: Sequence[MetricName] = METRICS,
        bertscore_encoder: str = ENCODER,
        predictions: str | None = None,
        rouge_tokenizer: TokenizerName = "default",
        rouge_lsum: bool = False,
        bleu_tokenizer: BleuTokenizer = "13a",
        compile: bool = False,
    ) -> None:
        super().__init__()
        check_movable(model, "DecodeModule")
        generate_kwargs = {} if generate_kwargs is None else generate_kwargs
        check_options(num_beams, max_new_tokens, generate_kwargs)
        self.model = model
        self.tokenizer = tokenizer
        self.max_new_tokens = max_new_tokens
        self.num_beams = num_beams
        self.generate_kwargs = dict(generate_kwargs)
        self.compiled = compile  # Module.compile is torch's own
        if isinstance(metrics, str):
            raise UserError(f"metrics={metrics!r}: expected a list, such as ['rouge'].")
        options = MetricOptions(bertscore_encoder, rouge_tokenizer, rouge_lsum, bleu_tokenizer)
        self.metrics = nn.ModuleDict({name: text_metric(name, options) for name in metrics})
        self.predictions = predictions
        self.resume = False
        self._file: PredictionFile | None = None
        self._done: Batches = {}
        self._wall_s = 0.0  # for which this process has decoded in the run
        self._examples = 0  # that this process has decoded or read back in the run
        self._seed = 0

    def validation_step(self, batch: dict[str, Any], batch_index: int) -> None:
        """Decode, score and write a batch of `hsdlab.data`."""
        self._step(batch, batch_index)

    def test_step(self, batch: dict[str, Any], batch_index: int) -> None:
        """Decode, score and write a batch of `hsdlab.data`."""
        self._step(batch, batch_index)

    def predict_step(self, batch: dict[str, Any], batch_index: int) -> list[dict[str, Any]]:
        """Decode, score and write a batch of `hsdlab.data`.

        Returns:
            One dictionary for each example, as in the prediction file. Lightning moves results between devices, which
            it cannot do with frozen records.
        """
        return [to_plain(record) for record in self._step(batch, batch_index)]

    def _start(self) -> None:
        """Reset the metrics; clear the prediction file, or read it in a resumed run."""
        self._seed = torch.initial_seed()
        for metric in self.text_metrics().values():
            metric.reset()  # under ddp_spawn it also ends the sharing of states between processes
        self._file, self._done, self._wall_s, self._examples = None, {}, 0.0, 0
        if self.predictions is None:
            return
        self._file = PredictionFile(Path(self.predictions), self.global_rank, self.trainer.world_size)
        if self.trainer.is_global_zero and not self.resume:
            self._file.clear()
        self.trainer.strategy.barrier("cleared")
        self._done = self._file.read()

    on_validation_start = on_test_start = on_predict_start = _start

    def _finish(self) -> None:
        """Merge the files of all processes into one."""
        self._done = {}
        if self._file is None:
            return
        examples = int(self.trainer.strategy.reduce(torch.tensor(self._examples), reduce_op="sum"))
        self.trainer.strategy.barrier("all have finished")
        if self.trainer.is_global_zero:
            self._file.merge()
            if (found := len(self._file.records())) < examples:
                raise RunError(
                    f"{self.predictions} holds {found} predictions of {examples} that were made: something else has "
                    "removed or changed it meanwhile. Give the command again, which decodes what is missing."
                )
        self.trainer.strategy.barrier("merged")

    on_validation_end = on_test_end = on_predict_end = _finish

    def on_validation_epoch_end(self) -> None:
        """Log the corpus figures."""
        self._log_metrics("val")

    def on_test_epoch_end(self) -> None:
        """Log the corpus figures."""
        self._log_metrics("test")

    def _log_metrics(self, stage: str) -> None:
        for metric in self.text_metrics().values():
            figures = metric.compute()  # of all processes
            self.log_dict({f"{stage}/{key}": value.float() for key, value in figures.items()}, sync_dist=True)

    def text_metrics(self) -> dict[str, TextMetric]:
        """Give the metrics of this module.

        Returns:
            The metrics by the names of the option `metrics`, in its order.
        """
        return dict(self.metrics.items())  # type: ignore[arg-type]

    def _step(self, batch: dict[str, Any], batch_index: int) -> list[ExampleRecord]:
        """Return the records of a batch: read from an earlier run, or decoded and written now."""
        if not batch["ids"]:
            return []  # there are more processes than examples
        number = batch_index * self.trainer.world_size + self.global_rank
        self._examples += len(batch["ids"])
        if number in self._done:
            return self._restored(self._done[number], batch)
        records = self._decode(batch, number)
        if self._file is not None:
            self._file.append(records)
        return records

    def _decode(self, batch: dict[str, Any], number: int) -> list[ExampleRecord]:
        run = self._run()
        options = self.generation().options
        if options.get("do_sample"):
            torch.manual_seed(random.Random(f"{self._seed} {number}").getrandbits(63))
        try:
            self.model.generate(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], **options)
        except NotFiniteLogitsError as error:
            ids = ", ".join(batch["ids"][row] for row in error.rows)
            raise RunError(f"{error} These are the examples {ids}.") from error
        output = run.output
        if output is None:
            raise RuntimeError("model.generate returned without decoding.")
        cost = decode_cost(self.model, output)
        self._wall_s += cost.wall_s
        decoded = Batch(number, len(batch["ids"]), replace(cost, wall_s=self._wall_s))
        records = [self._record(batch, output, row, decoded) for row in range(decoded.rows)]
        return self._scored(records)

    def writing_to(self, predictions: str) -> "DecodeModule":
        """Copy the module for another prediction file.

        Args:
            predictions: Path of the file.

        Returns:
            A module that shares the model, the metrics and all options with this one.
        """
        other = copy.copy(self)
        other.predictions = predictions
        return other

    def generation(self, form: Callable[[Mapping[str, Any]], dict[str, Any]] = dict) -> Generation:
        """Make the options of `model.generate` from this module's parameters.

        Args:
            form: Changes the options before they are checked: `greedy` or `fixed_length` of hsdlab.models.generation.

        Returns:
            The options. The checkpoint's own generation config adds special tokens and stop strings only.
        """
        own: dict[str, Any] = {"max_new_tokens": self.max_new_tokens, "num_beams": self.num_beams}
        if self.compiled:
            own["compile"] = True
        return generation(self.model, form(own | self.generate_kwargs), self.tokenizer)

    def _run(self) -> AppliedRun:
        """Return the run of the strategy that is applied to the model."""
        run = active_run(self.model)
        if run is None:
            raise RuntimeError(
                "No skip strategy is applied to the model: add one to the Trainer, "
                "Trainer(callbacks=[FullDepth()]) for plain decoding."
            )
        return run

    def _restored(self, records: list[ExampleRecord], batch: dict[str, Any]) -> list[ExampleRecord]:
        """Count a batch of an earlier run in the corpus figures and in the strategy's cost."""
        check_same_examples(records, zip(batch["ids"], batch["sources"], batch["references"], strict=True))
        for name, metric in self.text_metrics().items():
            metric.update_from_scores(
                [record.bleu_statistics if name == "bleu" else record.scores for record in records]
            )
        strategy: Any = self._run().strategy
        for cost in batch_costs(records):
            self._wall_s = max(self._wall_s, cost.wall_s)
            strategy.add_cost(cost)
        return records

    def _record(self, batch: dict[str, Any], output: DecodeOutput, row: int, decoded: Batch) -> ExampleRecord:
        """Make the record of one row of a batch, without scores."""
        steps = int(output.trace.live[:, row].sum())
        executed = output.trace.executed[:steps, row]  # (steps, layers) or (steps, layers, 2)
        new_tokens = steps + 1  # the first comes from the prefill
        token_ids = output.sequences[row, output.trace.prompt_length :][:new_tokens]
        return ExampleRecord(
            id=batch["ids"][row],
            source=batch["sources"][row],
            references=tuple(batch["references"][row]),
            prediction=self.tokenizer.decode(token_ids, skip_special_tokens=True).strip(),
            new_tokens=new_tokens,
            token_ids=tuple(token_ids.tolist()),
            tokens=tuple(self.tokenizer.batch_decode(token_ids[:, None])),
            decode_steps=steps,
            average_layers=depth_sum(executed, dims=2) / steps if steps else None,
            layers=tuple(_layer_ranges(step) for step in executed),
            batch=decoded,
            position=batch["positions"][row],
            drafts=() if output.trace.drafts is None else tuple(output.trace.drafts.rounds[row]),
        )

    def _scored(self, records: list[ExampleRecord]) -> list[ExampleRecord]:
        """Score each example once: for its record and for the corpus."""
        predictions = [record.prediction for record in records]
        references = [list(record.references) for record in records]
        for name, metric in self.text_metrics().items():
            scores = metric.score(predictions, references)
            metric.update_from_scores(scores)
            if name == "bleu":  # BLEU is a corpus figure: an example has counts, no score
                records = [replace(r, bleu_statistics=tuple(s)) for r, s in zip(records, scores, strict=True)]
            else:
                records = [replace(r, scores={**r.scores, **s}) for r, s in zip(records, scores, strict=True)]
        return records


def _layer_ranges(executed: Tensor) -> str:
    """Write the layers of a decode step, BoolTensor [layers] or [layers, 2], as a record does."""
    if executed.dim() == 1:
        return layer_ranges(executed.nonzero().flatten().tolist())
    attention, mlp = executed.unbind(dim=1)
    kinds = (attention & mlp, attention & ~mlp, mlp & ~attention)
    return layer_ranges(*(kind.nonzero().flatten().tolist() for kind in kinds))


def load_decode_module(
    name: str,
    dtype: Dtype = "float32",
    adapter: str | None = None,
    revision: str | None = None,
    quantization: Quantization | None = None,
    **kwargs: Any,
) -> DecodeModule:
    """Load a model and put it into a DecodeModule: the `model` of `evaluate.py`.

    Args:
        name: An embedded model ("embedded:smollm2-135m"), a local Hugging Face folder, a .gguf file, a folder
            with a LoRA adapter (its base model is loaded too), or the id of a model on the hub.
        dtype: Of the weights; "auto" for the stored one.
        adapter: Folder of a LoRA adapter to merge into the model. None merges none.
        revision: Branch, tag or commit of a model on the hub. None takes its main branch.
        quantization: Round the weights of the layers: int8 or nf4.
        **kwargs: See `DecodeModule`.

    Returns:
        The module, with its model on the CPU. The Trainer moves it to its device.

    Raises:
        UserError, OSError, RuntimeError: See `load_model` and `DecodeModule`.
    """
    with faults_of_the_run():  # the Trainer moves the module to its device
        model, tokenizer = load_model(
            name, dtype=dtype, device="cpu", adapter=adapter, revision=revision, quantization=quantization
        )
    return DecodeModule(model, tokenizer, **kwargs)


def check_decoding(options: Mapping[str, Any]) -> None:
    """Refuse what `DecodeModule` would, before a model is loaded for it.

    Args:
        options: Parameters of DecodeModule by name. A missing one has its default.

    Raises:
        UserError, FileNotFoundError: See `DecodeModule`.
    """
    check_options(
        options.get("num_beams", 1), options.get("max_new_tokens", 1), dict(options.get("generate_kwargs") or {})
    )
    names = options.get("metrics", METRICS)
    for name in names:
        if list(names).count(name) > 1:
            raise UserError(f"metrics lists {name!r} twice: expected each once.")
        text_metric(name, MetricOptions(bertscore_encoder=options.get("bertscore_encoder") or ENCODER))


def check_options(num_beams: int, max_new_tokens: int, generate_kwargs: dict[str, Any]) -> None:
    """Refuse numbers below 1, and generation options that are unknown or cannot be combined with skipped layers.

    Args:
        num_beams: As in `DecodeModule`: a whole number, 1 or more.
        max_new_tokens: A whole number, 1 or more.
        generate_kwargs: Options of `generate` that are no parameter of `DecodeModule`.

    Raises:
        UserError: One of them is not; the message names the parameter.
    """
    for name, value in (("num_beams", num_beams), ("max_new_tokens", max_new_tokens)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UserError(f"{name}={value!r}: expected a whole number, 1 or more.")
    if not isinstance(generate_kwargs, Mapping):
        raise UserError(
            f"generate_kwargs={generate_kwargs!r}: expected a mapping of options, such as {{'top_p': 0.9}}."
        )
    check_generate_kwargs(generate_kwargs)
