"""Decode with a strategy and watch, through hooks, what the model does."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hsdlab.decoding import DecodeOutput
from hsdlab.decoding.families import attention, decoder_parts, feed_forward
from hsdlab.strategies import SkipStrategy
from hsdlab.testing.expect import LawViolationError
from hsdlab.testing.tiny import prompts

MODES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beam": {"num_beams": 4},
    "sampling": {"do_sample": True, "temperature": 2.0},
}
"""transformers' options of the three ways to decode."""

NEW_TOKENS = 8
END_TOKENS = [3, 4, 5, 6]  # several, so that sequences of random text end at different times


@dataclass(frozen=True)
class Passes:
    """What hooks saw of each forward pass, the prompt pass first.

    ``with watched(model) as (logits, tokens_run)`` takes the first two.

    Attributes:
        logits: Per pass, the head's output at the last position [rows, vocabulary].
        tokens_run: Per pass and layer, the tokens for which the feed-forward part was called.
        tokens_attended: Per pass and layer, the tokens for which attention ran to its end.
        tokens_late: Per pass and layer, the tokens for which attention was called but stopped before its end: the
            late computation of keys and values, which needs the projections only (:mod:`hsdlab.decoding.cache`).
    """

    logits: list[Tensor] = field(default_factory=list)
    tokens_run: list[list[int]] = field(default_factory=list)
    tokens_attended: list[list[int]] = field(default_factory=list)
    tokens_late: list[list[int]] = field(default_factory=list)

    def __iter__(self) -> Iterator[Any]:
        return iter((self.logits, self.tokens_run))


@dataclass(frozen=True)
class Decode:
    """One decode seen from outside.

    Attributes:
        output: What hsdlab returned.
        passes: What hooks saw.
    """

    output: DecodeOutput
    passes: Passes

    @property
    def logits(self) -> list[Tensor]:
        """Per forward pass, the head's output at the last position [rows, vocabulary], prompt pass first."""
        return self.passes.logits


@contextmanager
def watched(model: PreTrainedModel) -> Iterator[Passes]:
    """Record the logits of each forward pass, and for which tokens each layer's two parts ran."""
    parts = decoder_parts(model)
    passes = Passes()

    def begin(*_: Any) -> None:
        for counts in (passes.tokens_run, passes.tokens_attended, passes.tokens_late):
            counts.append([0] * parts.num_layers)

    def keep(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        if output.dim() == 3:  # (rows, length, vocabulary); an intermediate prediction is (rows, vocabulary)
            passes.logits.append(output[:, -1].detach().clone())

    handles = [parts.body.register_forward_pre_hook(begin), parts.head.register_forward_hook(keep)]
    for index, layer in enumerate(parts.layers):
        called, ended = _counters(passes, index)
        handles += [
            feed_forward(layer).register_forward_pre_hook(_adds(passes.tokens_run, index), with_kwargs=True),
            attention(layer).register_forward_pre_hook(called, with_kwargs=True),
            attention(layer).register_forward_hook(ended, with_kwargs=True),
        ]
    try:
        yield passes
    finally:
        for handle in handles:
            handle.remove()


def _counters(passes: Passes, layer: int) -> tuple[Callable[..., None], Callable[..., None]]:
    """Hooks before and after attention. What stops in between is late: a hook after is not called then."""
    starts, ends = _adds(passes.tokens_late, layer), _adds(passes.tokens_attended, layer)

    def ended(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        ends(module, args, kwargs)
        starts(module, args, kwargs, sign=-1)

    return starts, ended


def _adds(counts: list[list[int]], layer: int) -> Callable[..., None]:
    """A hook that adds the tokens with which a module is called to the newest pass."""

    def add(module: nn.Module, args: tuple, kwargs: dict, sign: int = 1) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]  # (rows, length, d), or (tokens, d) in OPT
        counts[-1][layer] += sign * (hidden.numel() // hidden.shape[-1])

    return add


def decode(
    model: PreTrainedModel,
    strategy: SkipStrategy,
    mode: str = "greedy",
    rows: Tensor | None = None,
    **options: Any,
) -> Decode:
    """Decode three left-padded random prompts, or some of them, and watch.

    Args:
        model: The model.
        strategy: The strategy, applied through ``strategy.applied_to``.
        mode: A key of ``MODES``.
        rows: Indices of the prompts to decode; all three if not given.
        **options: More of transformers' options, or other ``input_ids`` and ``attention_mask``.

    Raises:
        LawViolationError: If ``applied_to`` does not apply the strategy to ``model.generate``.
    """
    ids, mask = prompts(3)
    if rows is not None:
        ids, mask = ids[rows], mask[rows]
        ids, mask = ids[:, mask.any(0)], mask[:, mask.any(0)]  # a single sequence needs no padding
    call = {
        "input_ids": ids,
        "attention_mask": mask,
        "max_new_tokens": NEW_TOKENS,
        "eos_token_id": END_TOKENS,
        "return_dict_in_generate": True,
        "output_scores": True,
        **MODES[mode],
        **options,
    }
    with watched(model) as passes, torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        with strategy.applied_to(model) as run:
            model.generate(**call)
    if run.output is None:
        raise LawViolationError(f"{strategy!r}: applied_to let model.generate run without it.")
    return Decode(run.output, passes)
