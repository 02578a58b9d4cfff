"""Check that a model of an unknown architecture keeps the decoding semantics, before it is used.

A guess from the structure (:mod:`hsdlab.decoding.families`) can be wrong without an error: a head with a scale, biases
that differ by row, another use of the cache. So the logits of a few tokens are computed in three ways: step by step on
``SkipCache``, by ``replay``, and by the model itself.
"""

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from hsdlab.decoding.cache import SkipCache
from hsdlab.decoding.decisions import Decisions
from hsdlab.decoding.families import DecoderParts, UnsupportedModelError, position_ids
from hsdlab.decoding.replay import replay
from hsdlab.decoding.skipping import skippable
from hsdlab.decoding.states import StepState

_TOLERANCE = 1e-2  # of the largest logit; reduced precision reaches about half of it, a wrong model is far beyond


class _Alternate:
    """Runs the even and the odd layers in turn, row by row, so that every layer needs late KV computations."""

    def check_model(self, parts: DecoderParts) -> None:
        return

    def scheduled_layers(self, num_layers: int, max_steps: int) -> None:
        return None

    def plan(self, state: StepState) -> Tensor:
        layers, rows = torch.arange(state.num_layers), torch.arange(state.rows)[:, None]
        return (layers + rows + state.step) % 2 == 0


def check_semantics(parts: DecoderParts) -> None:
    """Decode a few tokens of a model with skipped layers, and compare with ``replay`` and with the model itself.

    Args:
        parts: The parts that were found in the model. The result is remembered, so a model is checked once.

    Raises:
        UnsupportedModelError: The logits differ; the message says which.
    """
    if parts.model not in _problems:
        _problems[parts.model] = _problem(parts)
    problem = _problems[parts.model]
    if problem:
        raise UnsupportedModelError(
            f"{type(parts.model).__name__} ({parts.model.config.model_type}) is not a known family, and {problem}. "
            "CONTRIBUTING.md, 'Add a model family', says what to do."
        )


_problems: WeakKeyDictionary[nn.Module, str | None] = WeakKeyDictionary()  # a model is checked once


def _problem(parts: DecoderParts) -> str | None:
    model = parts.model
    vocabulary = model.get_input_embeddings().num_embeddings
    tokens = torch.arange(12, device=model.device).reshape(2, 6) * 7 % vocabulary  # (rows, length)
    prompt, steps = 3, 3
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            return _compare(parts, tokens, prompt, steps)
    except (TypeError, AttributeError, RuntimeError, IndexError) as error:
        return f"decoding a few tokens with it failed ({type(error).__name__}: {error})"
    finally:
        model.train(was_training)


def _compare(parts: DecoderParts, tokens: Tensor, prompt: int, steps: int) -> str | None:
    model, everything = parts.model, torch.ones(*tokens.shape, parts.num_layers, dtype=torch.bool)
    plain = model(input_ids=tokens).logits
    if not _close(replay(model, input_ids=tokens, executed=everything), plain):
        return "replay with all layers differs from a plain forward pass"
    last: list[Any] = []
    hook = parts.layers[-1].register_forward_hook(lambda module, args, output: last.append(output))
    try:
        model(input_ids=tokens)
    finally:
        hook.remove()
    hidden = last[0][0] if isinstance(last[0], tuple) else last[0]
    if not _close(parts.logits(hidden), plain):
        return "its final norm and head do not give its logits (a scale or a cap after the head?)"

    cache_ = SkipCache(parts, Decisions(_Alternate(), parts.num_layers, steps + 1))
    positions = position_ids(torch.ones_like(tokens))
    stepwise = []
    with skippable(parts):
        for start, stop in [(0, prompt), *((t, t + 1) for t in range(prompt, prompt + steps))]:
            inputs = {"input_ids": tokens[:, start:stop], "position_ids": positions[:, start:stop]}
            stepwise.append(model(**inputs, past_key_values=cache_, use_cache=True).logits)
    if len(cache_.executed) != steps:
        return "its layers were not all called with the cache"
    executed = everything.clone()
    executed[:, prompt:] = torch.stack(cache_.executed, dim=1)
    if not _close(torch.cat(stepwise, dim=1), replay(model, input_ids=tokens, executed=executed)):
        return "decoding with skipped layers differs from replay"
    return None


def _close(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).abs().max() <= _TOLERANCE * b.abs().max())
