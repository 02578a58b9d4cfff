"""Check that a model of an unknown architecture keeps the decoding semantics, before it is used.

A guess from the structure (:mod:`hsdlab.decoding.families`) can be wrong without an error: biases that differ by row,
arguments that differ by layer, another use of the cache. So the logits of a few tokens are computed in three ways: step
by step on ``SkipCache``, by ``replay``, and by the model itself. Whether the final norm and the head give the model's
logits is checked apart, for strategies that read intermediate predictions.
"""

import inspect
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from hsdlab.decoding.cache import SkipCache
from hsdlab.decoding.decisions import Decisions
from hsdlab.decoding.encoder_decoder import CrossAttention, EncoderDecoderPair
from hsdlab.decoding.families import DecoderParts, UnsupportedModelError, position_ids
from hsdlab.decoding.passes import Passes
from hsdlab.decoding.replay import replay
from hsdlab.decoding.skipping import skippable
from hsdlab.decoding.states import StepState

_PADDING, _PROMPT, _STEPS = 3, 6, 9
"""Tokens of padding of one of the two sequences, of its prompt with padding, and decode steps."""

_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-4}
"""Of the largest logit, where the dtype's own error is smaller. Softmax is in float32 also where the model is wider."""

_REDUCED = 0.1
"""In reduced precision: SmolLM2 in bfloat16 differs by 0.03 as it is, and by 0.5 with keys that are rotated wrongly."""


class _InTurn:
    """Runs every fourth layer, in turn by step and row: every layer then owes keys and values of three steps.

    Args:
        skips_prompt: Whether each token of the prompt skips every third layer, too.
    """

    def __init__(self, skips_prompt: bool = False) -> None:
        self._skips_prompt = skips_prompt

    def check_model(self, parts: DecoderParts) -> None:
        return

    def scheduled_layers(self, num_layers: int, max_steps: int) -> None:
        return None

    def scheduled_prompt(self, prompt_length: int, num_layers: int) -> list[list[int]] | None:
        if not self._skips_prompt or num_layers == 1:
            return None
        every = min(3, num_layers)
        return [[i for i in range(num_layers) if (i + token) % every] for token in range(prompt_length)]

    def plan(self, state: StepState) -> Tensor:
        layers, rows = torch.arange(state.num_layers), torch.arange(state.rows)[:, None]
        return (layers + rows + state.step) % min(4, state.num_layers) == 0


def check_semantics(parts: DecoderParts) -> None:
    """Decode a few tokens of a model with skipped layers, and compare with ``replay`` and with the model itself.

    Args:
        parts: The parts that were found in the model. The result is remembered, so a model is checked once.

    Raises:
        UnsupportedModelError: The logits differ; the message says which.
    """
    _refuse(parts, _problems, _decoding_problem)


def check_predictions(parts: DecoderParts) -> None:
    """Check that the final norm and the head turn the output of the last layer into the model's logits.

    Args:
        parts: The parts that were found in the model. The result is remembered, so a model is checked once. Families
            that hsdlab knows are not checked.

    Raises:
        UnsupportedModelError: The logits differ.
    """
    if not parts.proven:
        _refuse(parts, _head_problems, _head_problem)


def check_prompts(parts: DecoderParts) -> None:
    """Check that the tokens of a prompt can run different layers. Families that hsdlab knows need no check.

    Args:
        parts: The parts that were found in the model. The result is remembered, so a model is checked once.

    Raises:
        UnsupportedModelError: The logits are not those of ``replay`` (a mask that the layers make from the length of
            the pass).
    """
    _refuse(parts, _prompt_problems, _prompt_problem)


def check_passes(parts: DecoderParts) -> None:
    """Check that a forward pass can carry several tokens of each row, as the verification of drafts needs.

    Args:
        parts: The parts that were found in the model. The result is remembered, so a model is checked once. Of families
            that hsdlab knows, only the kind of attention is checked.

    Raises:
        UnsupportedModelError: The model does not take the mask of such a pass, or its logits are not those of
            ``replay``.
    """
    parts.check_masks()
    if not parts.proven:
        _refuse(parts, _pass_problems, _pass_problem)


_Problems = WeakKeyDictionary[nn.Module, str | None]
_problems: _Problems = WeakKeyDictionary()  # a model is checked once
_head_problems: _Problems = WeakKeyDictionary()
_prompt_problems: _Problems = WeakKeyDictionary()
_pass_problems: _Problems = WeakKeyDictionary()


def _refuse(parts: DecoderParts, known: _Problems, find: Callable[[DecoderParts], str | None]) -> None:
    model = parts.model
    if model not in known:
        was_training = model.training
        model.eval()
        try:
            with torch.no_grad():
                known[model] = find(parts)
        except (TypeError, AttributeError, RuntimeError, IndexError, ValueError) as error:
            known[model] = f"decoding a few tokens with it failed ({type(error).__name__}: {error})"
        finally:
            model.train(was_training)
    problem = known[model]
    if problem:
        raise UnsupportedModelError(
            f"{type(model).__name__} ({model.config.model_type}) is not a known family, and {problem}. "
            "CONTRIBUTING.md, 'Add a model family', says what to do."
        )


def _tokens(parts: DecoderParts) -> tuple[Tensor, Tensor]:
    """Return token ids and their mask, [2, prompt + steps] each; the second sequence has padding on the left."""
    vocabulary = parts.model.get_input_embeddings().num_embeddings
    length = _PROMPT + _STEPS
    special = 0 if parts.encoder is None else vocabulary // 2  # M2M100 counts its positions without padding tokens
    tokens = torch.arange(2 * length, device=parts.model.device).reshape(2, length) * 7 % (vocabulary - special)
    tokens += special
    mask = torch.ones_like(tokens)
    mask[1, :_PADDING] = 0
    return tokens, mask


def _given(parts: DecoderParts, tokens: Tensor, mask: Tensor) -> dict[str, Any]:
    """Return the arguments of a forward pass over texts, which a decoder beside an encoder reads as they are."""
    if parts.encoder is None:
        return {"input_ids": tokens, "attention_mask": mask, "position_ids": position_ids(mask)}
    return {**_source(parts), "decoder_input_ids": tokens}


def _source(parts: DecoderParts) -> dict[str, Tensor]:
    """Return what an encoder reads; the second sequence has padding on the right."""
    tokens, mask = _tokens(parts)
    return {"input_ids": tokens[:, :_PROMPT].flip(1), "attention_mask": mask[:, :_PROMPT].flip(1)}


def _replayed(parts: DecoderParts, tokens: Tensor, mask: Tensor, executed: Tensor) -> Tensor:
    if parts.encoder is None:
        return replay(parts.model, input_ids=tokens, attention_mask=mask, executed=executed)
    source = _source(parts)
    return replay(
        parts.model,
        input_ids=source["input_ids"],
        attention_mask=source["attention_mask"],
        decoder_input_ids=tokens,
        executed=executed,
    )


def _head_problem(parts: DecoderParts) -> str | None:
    tokens, mask = _tokens(parts)
    last: list[Any] = []
    hook = parts.layers[-1].register_forward_hook(lambda module, args, output: last.append(output))
    try:
        plain = parts.model(**_given(parts, tokens, mask)).logits
    finally:
        hook.remove()
    hidden = last[0][0] if isinstance(last[0], tuple) else last[0]
    if _close(parts.logits(hidden), plain, mask if parts.encoder is None else torch.ones_like(mask)):
        return None
    return (
        "its final norm and head do not give its logits (a scale or a cap after the head?), which this strategy reads "
        "after each layer"
    )


def _decoding_problem(parts: DecoderParts) -> str | None:
    model, (tokens, mask) = parts.model, _tokens(parts)
    everything = torch.ones(*tokens.shape, parts.num_layers, dtype=torch.bool)
    plain = model(**_given(parts, tokens, mask)).logits
    given = "position_ids" in inspect.signature(model.forward).parameters  # by generate
    if parts.encoder is not None:
        mask = torch.ones_like(mask)
    elif not given and not _close(model(input_ids=tokens, attention_mask=mask).logits, plain, mask):
        return "generate gives it no position_ids, so that padding moves its tokens"
    if not _close(_replayed(parts, tokens, mask, everything), plain, mask):
        return "replay with all layers differs from a plain forward pass"

    return _replay_problem(parts, _InTurn())


def _prompt_problem(parts: DecoderParts) -> str | None:
    problem = _replay_problem(parts, _InTurn(skips_prompt=True))
    return problem and f"under a prompt schedule {problem}"


def _replay_problem(parts: DecoderParts, strategy: _InTurn) -> str | None:
    """Decode step by step and compare the logits with those of ``replay``."""
    model, (tokens, mask) = parts.model, _tokens(parts)
    if parts.encoder is not None:
        mask = torch.ones_like(mask)
    positions = position_ids(mask)
    cross = None if parts.encoder is None else CrossAttention(parts.num_layers)
    cache = SkipCache(parts, Decisions(strategy, parts.num_layers, _STEPS + 1), cross=cross)
    cache.prompt_mask = mask[:, :_PROMPT]
    both = cache if cross is None else EncoderDecoderPair(parts, cache, cross)
    source = {} if parts.encoder is None else _source(parts)
    encoded = None if parts.encoder is None else parts.encoder(**source)
    stepwise = []
    with skippable(parts):
        for start, stop in [(0, _PROMPT), *((t, t + 1) for t in range(_PROMPT, _PROMPT + _STEPS))]:
            now = tokens[:, start:stop]
            given = {
                "input_ids": now,
                "attention_mask": mask[:, :stop] if start == 0 or any(parts.attends) else None,  # as in generate
                "position_ids": positions[:, start:stop],
            }
            if encoded is not None:
                mask_of_source = source["attention_mask"]
                given = {"encoder_outputs": encoded, "attention_mask": mask_of_source, "decoder_input_ids": now}
            stepwise.append(model(**given, use_cache=True, **{parts.cache_argument: both}).logits)
    if len(cache.executed) != _STEPS:
        return "its layers were not all called with the cache"
    executed = torch.ones(*tokens.shape, parts.num_layers, dtype=torch.bool)
    executed[:, _PROMPT:] = torch.stack(cache.executed, dim=1)
    if cache.prompt_executed is not None:
        executed[:, :_PROMPT] = cache.prompt_executed
    replayed = _replayed(parts, tokens, mask, executed)
    if not _close(torch.cat(stepwise, dim=1), replayed, mask):
        return "decoding with skipped layers differs from replay"
    return None


def _pass_problem(parts: DecoderParts) -> str | None:
    """Run two passes of several tokens, of which each row takes back another number."""
    tokens, mask = _tokens(parts)
    cache = SkipCache(parts, Decisions(_InTurn(), parts.num_layers, 2 * _STEPS))
    passes = Passes(parts, cache, mask[:, :_PROMPT])
    passes.prefill(tokens[:, :_PROMPT])
    places = torch.arange(_STEPS)[:, None]
    new = ((torch.arange(parts.num_layers) + places) % 3 > 0).expand(2, -1, -1)  # (rows, steps, layers)
    passes.run(tokens[:, _PROMPT:], new)
    kept = torch.tensor([_STEPS - 4, _STEPS - 2])
    passes.forget(kept)
    again = torch.stack([tokens[row, _PROMPT + count :][:2] for row, count in enumerate(kept.tolist())])
    executed = torch.ones(*tokens.shape, parts.num_layers, dtype=torch.bool)
    executed[:, _PROMPT:] = new
    for row, count in enumerate(kept.tolist()):
        executed[row, _PROMPT + count :] = True
    logits = passes.run(again, torch.ones(2, 2, parts.num_layers, dtype=torch.bool))
    replayed = replay(parts.model, input_ids=tokens, attention_mask=mask, executed=executed)
    expected = torch.stack([replayed[row, _PROMPT + count :][:2] for row, count in enumerate(kept.tolist())])
    if _close(logits, expected, torch.ones(2, 2)):
        return None
    return "a forward pass over several tokens, by which drafts are verified, differs from replay"


def _close(a: Tensor, b: Tensor, mask: Tensor) -> bool:
    """Compare logits [rows, length, vocabulary], except those of padding."""
    a, b = a[mask.bool()], b[mask.bool()]
    return bool((a - b).abs().max() <= _TOLERANCE.get(b.dtype, _REDUCED) * b.abs().max())
