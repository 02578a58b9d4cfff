"""What each layer is worth to a model on some text: does it predict what the last one does, can it be left out.

Teacher-forced: the prompt runs at full depth once and its keys and values are kept; then the text after it runs at
full depth, and again for each layer without it. Only the positions of decode steps count, whose inputs are the new
tokens but the last: step t has new token t as its input and predicts token t + 1.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity
from torchmetrics.functional.classification import binary_auroc

from hsdlab.data import GenerationDataModule
from hsdlab.data.sample import sample_batches
from hsdlab.decoding import generate
from hsdlab.decoding.families import DecoderParts, decoder_parts, plain_model
from hsdlab.decoding.forced import ForcedTexts, decode_steps
from hsdlab.decoding.semantics import check_predictions, check_semantics
from hsdlab.errors import RunError, UserError
from hsdlab.metrics.reliability import Reliability, both_kinds
from hsdlab.models.generation import greedy
from hsdlab.modules import DecodeModule
from hsdlab.progress import Steps
from hsdlab.records.bootstrap import Estimate, FloatArray, bootstrap_interval
from hsdlab.records.inspection import EarlierInspection, InspectedLayer, InspectionResult, LayerReliability
from hsdlab.records.model_info import ModelInfo
from hsdlab.records.provenance import RunInfo, run_info
from hsdlab.records.run_folder import fingerprint
from hsdlab.reporting.inspection import FILE, print_inspection, write_inspection
from hsdlab.reporting.tables import console
from hsdlab.runs.folder import holding_folder
from hsdlab.runs.model_info import model_info
from hsdlab.strategies.confidence import softmax_response
from hsdlab.strategies.full_depth import FullDepth

Texts = Literal["references", "generated"]


@holding_folder
def inspect(
    trainer: Trainer,
    module: DecodeModule,
    datamodule: GenerationDataModule,
    folder: str | Path,
    *,
    examples: int = 32,
    text: Texts = "references",
    before: str | Path | None = None,
    run: RunInfo | None = None,
) -> InspectionResult:
    """Measure what each layer is worth: how often it predicts what the last one does, what dropping it costs.

    Args:
        trainer: Only its device is used.
        module: Holds the loaded model.
        datamodule: Its seed draws the examples from its validation split.
        folder: Folder of the report. A missing folder is created.
        examples: The most examples, 1 or more.
        text: The text after the prompts: "references", each example's first reference, or "generated", the model's own
            greedy text.
        before: Folder of an earlier inspection of the same examples, such as that of the model before training. The
            report shows the confidence of both models.
        run: Provenance for the record. None notes it now.

    Returns:
        The figures of all layers, with bootstrap intervals over the examples.

    Raises:
        UserError: An option out of its range, no text has a decode step, or `before` does not fit.
        RunError: `before` holds no inspection that can be read.
        UnsupportedModelError: hsdlab cannot decode this model with skipped layers.
    """
    if text not in get_args(Texts):
        raise UserError(f"text={text!r}: expected one of {', '.join(get_args(Texts))}.")
    if examples < 1:
        raise UserError(f"examples={examples}: expected 1 or more.")
    earlier = None if before is None else _read_earlier(Path(before))
    model = module.model.to(trainer.strategy.root_device)
    datamodule.prepare_data()
    datamodule.connect_to(module)
    batches = sample_batches(datamodule, "validation", examples)
    decoding = module.generation(greedy)
    what = f"{text} of at most {module.max_new_tokens} tokens"
    examples_hash = fingerprint(_tokens(batch["pairs"] for batch in batches))
    if earlier is not None:
        _check_fits(earlier, f"--before={before}", what, examples_hash, decoder_parts(model).num_layers)
    if text == "generated":
        with Steps("Decoding", len(batches), "batches") as steps:
            texts = []
            for batch in batches:
                texts.append(own_text(model, batch, **decoding.options))
                steps.advance()
    else:
        texts = [batch["pairs"] for batch in batches]
    noted = run or run_info(generation=decoding.record())
    result = inspection_result(inspect_layers(model, texts), model_info(model), what, noted)
    exits = decoder_parts(model).exits
    result = replace(
        result,
        exits=() if exits is None else exits.layers,
        examples_hash=examples_hash,
        before=None
        if earlier is None
        else EarlierInspection(earlier.model, earlier.layers, earlier.exits, earlier.run),
    )
    write_inspection(result, Path(folder))
    print_inspection(result, console())
    return result


def _read_earlier(folder: Path) -> InspectionResult:
    """Read an inspection to compare with.

    Raises:
        RunError: The folder holds none, or one without the confidence's reliability.
    """
    path = folder / FILE
    if not path.is_file():
        raise RunError(f"--before={folder}: expected the folder of a finished `inspect`, got one without {FILE}.")
    earlier = InspectionResult.read(path)
    if earlier.examples_hash is None or any(layer.reliability is None for layer in earlier.layers):
        raise RunError(
            f"--before={folder}: an earlier version of hsdlab wrote this inspection, without the reliability of the "
            "confidence. Inspect that model again."
        )
    return earlier


def _check_fits(earlier: InspectionResult, option: str, text: str, examples_hash: str, num_layers: int) -> None:
    """Refuse an earlier inspection of other examples, of another kind of text, or of a model with other layers.

    Raises:
        UserError: Naming what differs.
    """
    if earlier.text != text:
        raise UserError(
            f"{option} measured {earlier.text}; expected {text}, as this run. Give the same --text and "
            "--model.max_new_tokens."
        )
    if earlier.examples_hash != examples_hash:
        raise UserError(
            f"{option} measured other examples than this run. Give the same data with the same --data.seed and "
            "--data.limit, the same --examples and the same tokenizer."
        )
    if len(earlier.layers) != num_layers:
        raise UserError(f"{option} measured a model of {len(earlier.layers)} layers; this one has {num_layers}.")


def _tokens(pairs: Iterable[Mapping[str, Tensor]]) -> Iterator[str]:
    """The token ids of each example, prompt and reference, without padding."""
    for batch in pairs:
        named = [("input_ids", "attention_mask"), *([("source_ids", "source_mask")] if "source_ids" in batch else [])]
        for row in range(len(batch["input_ids"])):  # independent of how the rows are batched
            yield " ".join(str(batch[ids][row][batch[mask][row].bool()].tolist()) for ids, mask in named)


@dataclass(frozen=True)
class Inspection:
    """Sums over the decode steps of each example, in float64; over ``steps`` they are means.

    ``case_agrees``, ``case_confidence`` and ``case_cosine`` hold the single decode steps.

    Attributes:
        steps: [examples], decode steps.
        agreement: [examples, layers], steps in which the layer's prediction (the final norm and the head on its
            output) is the last layer's.
        saturation: [examples, layers], steps in which so are the predictions of all later layers.
        confidence: [examples, layers], softmax response of the layer's prediction (CALM, arXiv 2207.07061).
        cosine: [examples, layers], cosine of the layer's output and its input (CALM's hidden-state saturation).
        oracle_layers: [examples], layers up to the first whose prediction is the last one's.
        loss: [examples], negative log-likelihood of the text's next token at full depth, nats.
        dropped_loss: [examples, layers], the same without the layer.
        dropped_agreement: [examples, layers], steps in which the prediction without the layer is the full model's.
        case_agrees: [steps of all examples, layers], what ``agreement`` sums.
        case_confidence: [steps of all examples, layers], what ``confidence`` sums.
        case_cosine: [steps of all examples, layers], what ``cosine`` sums.
    """

    steps: FloatArray
    agreement: FloatArray
    saturation: FloatArray
    confidence: FloatArray
    cosine: FloatArray
    oracle_layers: FloatArray
    loss: FloatArray
    dropped_loss: FloatArray
    dropped_agreement: FloatArray
    case_agrees: FloatArray
    case_confidence: FloatArray
    case_cosine: FloatArray


def inspect_layers(model: nn.Module, batches: Sequence[Mapping[str, Tensor]]) -> Inspection:
    """Measure every layer of a model on some text, with a progress bar; examples without a decode step are left out.

    Args:
        model: A transformers model in eval mode.
        batches: Each "input_ids" and "attention_mask" [rows, length], and "target_mask", BoolTensor [rows, length],
            true at the new tokens; for an encoder-decoder the sources too (``collate_pairs`` of hsdlab.data).

    Returns:
        The sums of each example that has a decode step, in the order of the batches.

    Raises:
        UserError: No sequence of any batch has two new tokens, so there is no decode step.
        UnsupportedModelError: hsdlab cannot decode this model with skipped layers.
    """
    parts = decoder_parts(model)
    if not parts.proven:
        check_semantics(parts)
    check_predictions(parts)
    batches = [batch for batch in batches if decode_steps(batch["target_mask"]).any()]
    if not batches:
        raise UserError("No text has two tokens or more after its prompt: there is no decode step to measure.")
    with torch.inference_mode(), Steps("Inspecting", len(batches) * (parts.num_layers + 1), "passes") as steps:
        sums = [_sums_of_rows(parts, batch, steps.advance) for batch in batches]
    has_steps = torch.cat([each["steps"] for each in sums]) > 0
    joined = {name: torch.cat([each[name] for each in sums]) for name in sums[0]}
    return Inspection(
        **{name: (each if name.startswith("case_") else each[has_steps]).numpy() for name, each in joined.items()}
    )


def inspection_result(measured: Inspection, model: ModelInfo, text: str, run: RunInfo) -> InspectionResult:
    """Make the record of an inspection.

    Args:
        measured: The sums of one or more examples.
        model: Described in the record.
        text: What the text after the prompts is, in words for the report.
        run: Provenance.

    Returns:
        Means over all decode steps with bootstrap intervals over the examples, of the text and of each layer.
    """
    steps, layers = measured.steps, measured.agreement.shape[1]
    of_layers = {
        "agreement": measured.agreement,
        "saturation": measured.saturation,
        "confidence": measured.confidence,
        "cosine": measured.cosine,
        "dropped_loss": measured.dropped_loss - measured.loss[:, None],
        "dropped_agreement": measured.dropped_agreement,
    }
    reliability = layer_reliability(measured)
    rows = [
        InspectedLayer(
            layer,
            **{name: _mean(sums[:, layer], steps) for name, sums in of_layers.items()},
            reliability=reliability[layer],
        )
        for layer in range(layers)
    ]
    return InspectionResult(
        model=model,
        text=text,
        examples=len(steps),
        decode_steps=int(steps.sum()),
        loss=_mean(measured.loss, steps),
        oracle_layers=_mean(measured.oracle_layers, steps),
        # the layers that are not saturated, and the first that is
        saturated_layers=_mean((layers + 1) * steps - measured.saturation.sum(axis=1), steps),
        cheapest_first=tuple(sorted(range(layers), key=lambda layer: rows[layer].dropped_loss.value)),
        layers=tuple(rows),
        run=run,
    )


def layer_reliability(measured: Inspection) -> list[LayerReliability]:
    """Compute how well the confidence after each layer tells whether its prediction is the last layer's.

    Args:
        measured: With one or more decode steps.

    Returns:
        One entry per layer.
    """
    agrees = torch.from_numpy(measured.case_agrees).bool()  # (steps, layers)
    confidence = torch.from_numpy(measured.case_confidence)
    cosine = (torch.from_numpy(measured.case_cosine) + 1) / 2  # torchmetrics' AUROC takes scores from 0 to 1
    metric = Reliability(agrees.shape[1])
    metric.update(confidence, agrees)
    diagram = metric.compute()
    aurocs = [_auroc(scores, agrees, diagram["positive_rate"]) for scores in (confidence, cosine)]
    return [
        LayerReliability(
            auroc=float(aurocs[0][layer]),
            saturation_auroc=float(aurocs[1][layer]),
            calibration_error=float(diagram["calibration_error"][layer]),
            confidence=tuple(diagram["confidence"][layer].tolist()),
            rate=tuple(diagram["rate"][layer].tolist()),
            count=tuple(int(count) for count in diagram["count"][layer]),
        )
        for layer in range(agrees.shape[1])
    ]


def _auroc(scores: Tensor, agrees: Tensor, positive_rate: Tensor) -> Tensor:
    """Exact AUROC of each layer: [steps, layers] to [layers]."""
    each = [
        binary_auroc(score, agree.long()) if defined else torch.tensor(torch.nan)
        for score, agree, defined in zip(scores.unbind(1), agrees.unbind(1), both_kinds(positive_rate), strict=True)
    ]
    return torch.stack(each)


def _mean(sums: FloatArray, steps: FloatArray) -> Estimate:
    """Return the mean over all decode steps, with its interval over resampled examples."""
    low, high = bootstrap_interval(np.stack([sums, steps], axis=1), lambda totals: float(totals[0] / totals[1]))
    return Estimate(float(sums.sum() / steps.sum()), low, high)


def own_text(model: nn.Module, prompts: Mapping[str, Tensor], **options: Any) -> dict[str, Tensor]:
    """Continue prompts at full depth, or write the targets of an encoder-decoder's sources.

    Args:
        model: A transformers model in eval mode.
        prompts: "input_ids" and "attention_mask" [rows, length]. Other entries are ignored.
        **options: Of ``generate``: "max_new_tokens", "do_sample" …

    Returns:
        A batch for :func:`inspect_layers` on the model's device, with "input_ids", "attention_mask" and "target_mask",
        [rows, length + new tokens]; for an encoder-decoder also "source_ids" and "source_mask".
    """
    device = plain_model(model).device
    given = {name: prompts[name].to(device) for name in ("input_ids", "attention_mask")}
    ids, mask = given["input_ids"], given["attention_mask"]
    output = generate(model, input_ids=ids, attention_mask=mask, strategy=FullDepth(), **options)
    last_token = output.trace.live.sum(dim=0).to(device)  # (rows); step t makes new token t + 1
    new_tokens = torch.arange(output.sequences.shape[1] - output.trace.prompt_length, device=device)
    is_new = new_tokens <= last_token[:, None]  # (rows, new)
    sources = {}
    if plain_model(model).config.is_encoder_decoder:
        sources = {"source_ids": ids, "source_mask": mask}
        mask = mask.new_ones(len(mask), output.trace.prompt_length)  # of the decoder's prompt
    return {
        "input_ids": output.sequences,
        "attention_mask": torch.cat([mask, is_new.long()], dim=1),
        "target_mask": torch.cat([torch.zeros_like(mask, dtype=torch.bool), is_new], dim=1),
        **sources,
    }


def _sums_of_rows(
    parts: DecoderParts, batch: Mapping[str, Tensor], after_pass: Callable[[], None]
) -> dict[str, Tensor]:
    """The fields of :class:`Inspection` for the rows of one batch, on the CPU."""
    texts = ForcedTexts(parts.model, batch)
    executed = texts.decode.new_ones(*texts.decode.shape, parts.num_layers)
    with _states(parts, texts.decode) as states:
        logits = texts.logits(executed)  # (steps, vocabulary)
    after_pass()
    full_loss, full_tokens = texts.loss(logits), logits.argmax(dim=-1)
    losses, agrees = [], []
    for layer in range(parts.num_layers):
        without = executed.clone()
        without[:, :, layer] = ~texts.decode
        logits = texts.logits(without)
        losses.append(texts.loss(logits))
        agrees.append(logits.argmax(dim=-1) == full_tokens)
        after_pass()
    of_steps = {
        **_predictions(parts, states),
        "steps": torch.ones_like(full_loss),
        "loss": full_loss,
        "dropped_loss": torch.stack(losses, dim=1),  # (steps, layers)
        "dropped_agreement": torch.stack(agrees, dim=1),
    }
    row = texts.decode.nonzero()[:, 0].cpu()  # (steps)
    of_steps = {name: values.cpu().double() for name, values in of_steps.items()}
    cases = {"case_agrees": "agreement", "case_confidence": "confidence", "case_cosine": "cosine"}
    return {name: _sums(values, row, len(texts.decode)) for name, values in of_steps.items()} | {
        case: of_steps[name] for case, name in cases.items()
    }


def _sums(values: Tensor, row: Tensor, rows: int) -> Tensor:
    """Sums over the steps of each row: [steps, ...] to [rows, ...]."""
    return values.new_zeros(rows, *values.shape[1:]).index_add(0, row, values)


@contextmanager
def _states(parts: DecoderParts, decode: Tensor) -> Iterator[list[Tensor]]:
    """Collect the input of the first layer and the outputs of all layers of one pass, each [steps, d]."""
    states: list[Tensor] = []

    def of_steps(hidden: Tensor) -> Tensor:
        return hidden[:, -decode.shape[1] :][decode]  # the pass may begin with the prompt

    def collect(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if not states:
            states.append(of_steps(args[0] if args else kwargs["hidden_states"]))
        states.append(of_steps(output[0] if isinstance(output, tuple) else output))

    handles = [layer.register_forward_hook(collect, with_kwargs=True) for layer in parts.layers]
    try:
        yield states
    finally:
        for handle in handles:
            handle.remove()


def _predictions(parts: DecoderParts, states: Sequence[Tensor]) -> dict[str, Tensor]:
    """What the states of one pass tell, each [steps, layers] or [steps]; one layer's logits at a time."""
    predicted, confidence, cosine = [], [], []
    for layer, (arrived, output) in enumerate(pairwise(states)):  # (steps, d)
        logits = parts.logits(output, layer)  # (steps, vocabulary)
        predicted.append(logits.argmax(dim=-1))
        confidence.append(softmax_response(logits))
        wider = torch.promote_types(output.dtype, torch.float32)
        cosine.append(cosine_similarity(output.to(wider), arrived.to(wider), dim=-1))
    tokens = torch.stack(predicted, dim=1)  # (steps, layers)
    agrees = tokens == tokens[:, -1:]
    return {
        "agreement": agrees,
        "saturation": agrees.flip(1).long().cumprod(dim=1).flip(1),
        "confidence": torch.stack(confidence, dim=1),
        "cosine": torch.stack(cosine, dim=1),
        "oracle_layers": agrees.long().argmax(dim=1) + 1,
    }
