"""DecodeModule: decode a data set, score every example, write each prediction down."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from jsonargparse.typing import PositiveInt
from lightning.pytorch import LightningModule
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hsdlab.decoding import DecodeOutput, active_run
from hsdlab.decoding.layer_ranges import layer_ranges
from hsdlab.embedded import PREFIX, embedded_folder
from hsdlab.metrics import BLEU, ROUGE, BERTScore
from hsdlab.metrics.base import TextMetric
from hsdlab.models import load_model

Dtype = Literal["float32", "bfloat16", "float16", "float64", "auto"]
MetricName = Literal["rouge", "bleu", "bertscore"]
METRICS: tuple[MetricName, ...] = ("rouge", "bleu", "bertscore")
ENCODER = "embedded:all-minilm-l6-v2"
_NOT_IN_GENERATE_KWARGS = {
    "max_new_tokens": "give it as the parameter max_new_tokens",
    "max_length": "give max_new_tokens instead",
    "num_beams": "give it as the parameter num_beams",
    "num_return_sequences": "an example has one prediction",
}


class DecodeModule(LightningModule):
    """Decodes the prompts of a data module under the skip strategy among the Trainer's callbacks.

    `validate` and `test` log the corpus figures of the metrics (`val/rougeL`, `test/bleu4`, ...); `predict`
    returns the records. All three score each example and, if `predictions` names a file, write its record
    there as soon as it is decoded, one JSON object a line:

    - "id", "source", "references": of the example; "prediction": the new text, without special tokens;
    - "new_tokens": the tokens of the prediction, its end-of-sequence token included;
    - "tokens": those tokens as texts; the first comes from the prompt pass, token k+1 from decode step k;
    - "decode_steps" and "average_layers": the steps that it took and their mean depth (null without a step);
    - "layers": for each of those steps, the layers that ran, such as "0,2,4,15-29";
    - "scores": ROUGE and BERTScore of the example; "bleu_statistics": what corpus BLEU sums up.

    Args:
        model: A decoder-only transformers model.
        tokenizer: Its tokenizer.
        max_new_tokens: The most tokens that are decoded for an example, T of the strategies' schedules.
        num_beams: Beams of the search, 4 as in the HSD paper; 1 is greedy decoding (or sampling, if
            `generate_kwargs` says so).
        generate_kwargs: More options of transformers' `generate`: `{"do_sample": true, "top_p": 0.9}`.
        metrics: Which of "rouge", "bleu" and "bertscore" to compute.
        bertscore_encoder: Encoder of BERTScore: a local folder, or an embedded model.
        predictions: The file to write, made anew in each run; by default none. Under several processes each
            writes one of its own, with its rank in the name.

    Raises:
        ValueError: A number below 1, an unknown metric, or an option in `generate_kwargs` that has a
            parameter here.
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
    ) -> None:
        super().__init__()
        generate_kwargs = dict(generate_kwargs or {})
        check_options(num_beams, max_new_tokens, generate_kwargs)
        self.model = model
        self.tokenizer = tokenizer
        self.max_new_tokens = max_new_tokens
        self.num_beams = num_beams
        self.generate_kwargs = generate_kwargs
        self.metrics = nn.ModuleDict({name: _metric(name, bertscore_encoder) for name in metrics})
        self.predictions = predictions

    @property
    def predictions_file(self) -> Path | None:
        """The file that this process writes; None if it writes none."""
        if self.predictions is None:
            return None
        path = Path(self.predictions)
        rank = "" if self.trainer.world_size == 1 else f".rank{self.global_rank}"
        return path.with_suffix(f"{rank}{path.suffix}")

    def validation_step(self, batch: dict[str, Any], batch_index: int) -> None:
        """Decode, score and write a batch of `hsdlab.data`."""
        self._decode(batch)

    def test_step(self, batch: dict[str, Any], batch_index: int) -> None:
        """Decode, score and write a batch of `hsdlab.data`."""
        self._decode(batch)

    def predict_step(self, batch: dict[str, Any], batch_index: int) -> list[dict[str, Any]]:
        """Decode, score and write a batch of `hsdlab.data`; return a record for each of its examples."""
        return self._decode(batch)

    def _start(self) -> None:
        """Forget what an earlier run scored and wrote."""
        for metric in self._text_metrics().values():
            metric.reset()  # under ddp_spawn it also ends the sharing of states between processes
        if self.predictions_file is not None:
            self.predictions_file.parent.mkdir(parents=True, exist_ok=True)
            self.predictions_file.write_text("", encoding="utf-8")

    on_validation_start = on_test_start = on_predict_start = _start

    def on_validation_epoch_end(self) -> None:
        """Log the corpus figures."""
        self._log_metrics("val")

    def on_test_epoch_end(self) -> None:
        """Log the corpus figures."""
        self._log_metrics("test")

    def _log_metrics(self, stage: str) -> None:
        for metric in self._text_metrics().values():
            figures = metric.compute()  # of all processes
            self.log_dict({f"{stage}/{key}": value.float() for key, value in figures.items()}, sync_dist=True)

    def _text_metrics(self) -> dict[str, TextMetric]:
        return dict(self.metrics.items())  # type: ignore[arg-type]

    def _decode(self, batch: dict[str, Any]) -> list[dict[str, Any]]:
        run = active_run(self.model)
        if run is None:
            raise RuntimeError(
                "No skip strategy is applied to the model: add one to the Trainer, "
                "Trainer(callbacks=[FullDepth()]) for plain decoding."
            )
        self.model.generate(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            max_new_tokens=self.max_new_tokens,
            num_beams=self.num_beams,
            **self.generate_kwargs,
        )
        assert run.output is not None
        records = self._records(batch, run.output)
        self._score(records)
        if self.predictions_file is not None:
            with self.predictions_file.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        return records

    def _records(self, batch: dict[str, Any], output: DecodeOutput) -> list[dict[str, Any]]:
        """Make the records of a batch, without scores."""
        steps = output.trace.live.sum(dim=0).tolist()  # (rows)
        depths = output.trace.depths.sum(dim=0).tolist()  # (rows), layers over all steps
        executed = output.trace.executed  # (steps, rows, layers)
        new_tokens = output.sequences[:, batch["input_ids"].shape[1] :]  # (rows, new)
        records = []
        for row, example_id in enumerate(batch["ids"]):
            real_tokens = steps[row] + 1  # the first comes from the prompt pass
            token_ids = new_tokens[row, :real_tokens]
            text = self.tokenizer.decode(token_ids, skip_special_tokens=True)
            records.append(
                {
                    "id": example_id,
                    "source": batch["sources"][row],
                    "prediction": text.strip(),
                    "references": batch["references"][row],
                    "new_tokens": real_tokens,
                    "tokens": self.tokenizer.batch_decode(token_ids[:, None]),
                    "decode_steps": steps[row],
                    "average_layers": depths[row] / steps[row] if steps[row] else None,
                    "layers": [layer_ranges(step.nonzero().flatten().tolist()) for step in executed[: steps[row], row]],
                    "scores": {},
                }
            )
        return records

    def _score(self, records: list[dict[str, Any]]) -> None:
        """Score each example once: for its record and for the corpus."""
        predictions = [record["prediction"] for record in records]
        references = [record["references"] for record in records]
        for name, metric in self._text_metrics().items():
            scores = metric.score(predictions, references)
            metric.update_from_scores(scores)
            for record, score in zip(records, scores, strict=True):
                if name == "bleu":  # a corpus figure: an example has counts, no score
                    record["bleu_statistics"] = score
                else:
                    record["scores"].update(score)


def load_decode_module(
    name: str,
    dtype: Dtype = "float32",
    adapter: str | None = None,
    revision: str | None = None,
    **kwargs: Any,
) -> DecodeModule:
    """Load a model and put it into a DecodeModule: the `model` of `evaluate.py`.

    Args:
        name: An embedded model ("embedded:smollm2-135m"), a local Hugging Face folder, a .gguf file, a folder
            with a LoRA adapter (its base model is loaded too), or the id of a model on the hub.
        dtype: Of the weights; "auto" for the stored one.
        adapter: Folder of a LoRA adapter to merge into the model.
        revision: Branch, tag or commit of a model on the hub.
        **kwargs: See `DecodeModule`.

    Raises:
        ValueError, OSError, RuntimeError: See `load_model` and `DecodeModule`.
    """
    # The Trainer moves the module to its device.
    model, tokenizer = load_model(name, dtype=dtype, device="cpu", adapter=adapter, revision=revision)
    return DecodeModule(model, tokenizer, **kwargs)


def check_options(num_beams: int, max_new_tokens: int, generate_kwargs: dict[str, Any]) -> None:
    """Refuse numbers below 1 and generation options that have a parameter of their own.

    Raises:
        ValueError: In the words of DecodeModule's parameters.
    """
    for name, value in (("num_beams", num_beams), ("max_new_tokens", max_new_tokens)):
        if value < 1:
            raise ValueError(f"{name}={value}: expected 1 or more.")
    for name in _NOT_IN_GENERATE_KWARGS:
        if name in generate_kwargs:
            raise ValueError(f"generate_kwargs holds {name!r}: {_NOT_IN_GENERATE_KWARGS[name]}.")


def _metric(name: str, bertscore_encoder: str) -> TextMetric:
    if name == "rouge":
        return ROUGE()
    if name == "bleu":
        return BLEU()
    if name == "bertscore":
        embedded = bertscore_encoder.startswith(PREFIX)
        return BERTScore(embedded_folder(bertscore_encoder) if embedded else bertscore_encoder)
    raise ValueError(f"metrics holds {name!r}: expected some of {', '.join(METRICS)}.")
