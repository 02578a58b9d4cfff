"""The laws 2 to 9, each on one strategy.

:func:`~hsdlab.testing.not_applicable` says where one does not apply. The laws of a decode take, as ``remembered``, a
:class:`~hsdlab.testing.RememberedDecodes`, so that several of them read one and the same decode. Laws 5 and 6 are
about what a decode leaves behind, in the model and in the strategy, so there the strategy decodes anew.
"""

import copy
import math
import pickle
from collections.abc import Sequence
from typing import Any

import torch
import yaml
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedModel

from hsdlab.decoding import DecodeOutput, Trace, replay
from hsdlab.decoding.families import DecoderParts, decoder_parts
from hsdlab.decoding.sub_layers import apart
from hsdlab.strategies import FullDepth, SkipStrategy
from hsdlab.testing.expect import LawViolationError, expect_close, expect_equal
from hsdlab.testing.remembered import DecodeCall
from hsdlab.testing.snapshot import snapshot
from hsdlab.testing.tiny import prompts, prompts_for
from hsdlab.testing.watching import MODES, NEW_TOKENS, decode

_FEW_TOKENS = 4  # enough to skip layers, to owe keys and values and to be interrupted


def law_2_never_skip(
    model: PreTrainedModel, strategy: SkipStrategy, mode: str, remembered: DecodeCall = decode
) -> None:
    """Check law 2: the never-skip setting equals FullDepth, in tokens and logits.

    Args:
        model: A small model in float64.
        strategy: One whose ``never_skip()`` is not None.
        mode: A key of ``MODES``, one way to decode.
        remembered: Makes the decodes, or gives those that another law made.

    Raises:
        LawViolationError: ``never_skip()`` is of another class, or tokens or logits differ.
    """
    setting = strategy.never_skip()
    if type(setting) is not type(strategy):
        raise LawViolationError(f"never_skip() gave a {type(setting).__name__}; expected a {type(strategy).__name__}.")
    here, full = remembered(model, setting, mode), remembered(model, FullDepth(), mode)
    expect_close(here.output.sequences, full.output.sequences, "the tokens of never_skip() differ from FullDepth's")
    for step, (a, b) in enumerate(zip(here.logits, full.logits, strict=True)):
        if step and "num_beams" not in MODES[mode]:
            live = full.output.trace.live[step - 1]  # the engine may leave out a sequence that has ended
            a, b = a[live], b[live]
        expect_close(a, b, f"the logits of never_skip() differ from FullDepth's in pass {step}")


def law_3_replay(model: PreTrainedModel, strategy: SkipStrategy, mode: str, remembered: DecodeCall = decode) -> None:
    """Check law 3: the logits of each step equal those of ``replay`` over the trace.

    Args:
        model: A small model in float64.
        strategy: Any but an oracle.
        mode: A key of ``MODES``, one way to decode.
        remembered: Makes the decode, or gives the one that another law made.

    Raises:
        LawViolationError: Logits, or the scores of beams, differ.
    """
    seen = remembered(model, strategy, mode)
    output = seen.output
    start = output.trace.prompt_length
    expected = replayed(model, output)[:, start - 1 : -1]  # (rows, new, vocabulary)
    beams = MODES[mode].get("num_beams", 1)
    alive = torch.cat([torch.ones(1, 3, dtype=torch.bool), output.trace.live])  # (new, rows)
    for step, row in alive.nonzero().tolist():
        candidates = seen.logits[step][row * beams : (row + 1) * beams]  # (beams, vocabulary)
        nearest = candidates[(candidates - expected[row, step]).abs().amax(dim=1).argmin()]
        expect_close(nearest, expected[row, step], f"sequence {row}: the logits of pass {step} differ from replay's")
    if output.sequences_scores is not None:
        chosen = expected.float().log_softmax(-1).gather(-1, output.sequences[:, start:, None]).squeeze(-1)
        scores = (chosen * alive.T).sum(1) / alive.sum(0)
        expect_close(output.sequences_scores, scores, "sequences_scores differ from replay's", tolerance=1e-4)


def replayed(model: PreTrainedModel, output: DecodeOutput) -> Tensor:
    """Replay a decode of all three prompts of :func:`~hsdlab.testing.tiny.prompts_for`.

    Args:
        model: The model that decoded.
        output: What it decoded.

    Returns:
        Logits [rows, length, vocabulary] of the sequences.
    """
    ids, mask = prompts_for(model)
    executed = output.trace.mask(output.trace.prompt_length)
    with torch.no_grad():
        if model.config.is_encoder_decoder:
            decoder_ids = output.sequences
            return replay(model, input_ids=ids, attention_mask=mask, decoder_input_ids=decoder_ids, executed=executed)
        new = output.sequences.shape[1] - ids.shape[1]
        mask = torch.cat([mask, torch.ones(3, new, dtype=torch.long)], dim=1)
        return replay(model, input_ids=output.sequences, attention_mask=mask, executed=executed)


def law_4_trace(model: PreTrainedModel, strategy: SkipStrategy, mode: str, remembered: DecodeCall = decode) -> None:
    """Check law 4: the trace equals an independent count by hooks on attention and feed-forward part.

    Attention ran for a token if it came to its end, and the MLP if it was called. Where a strategy does not have them
    run apart, both count the executed layers. Attention that was called and stopped before its end is a late KV
    computation. In a prefill under a prompt schedule, a layer computes as many tokens for each prompt as for the prompt
    that runs it for the most; those that are too many repeat others. A recurrent layer computes all or none.

    Args:
        model: A small model in float64.
        strategy: Any but an oracle.
        mode: A key of ``MODES``, one way to decode.
        remembered: Makes the decode, or gives the one that another law made.

    Raises:
        LawViolationError: The trace has other numbers of executed layers or of late KV computations.
    """
    # With beams, the rows of the search are not the returned sequences, so the totals are compared. Without, no
    # sequence ends early: the engine may compute what follows an end-of-sequence token, and the trace omits it.
    seen = remembered(model, strategy, mode) if mode == "beam" else remembered(model, strategy, mode, eos_token_id=None)
    trace, passes = seen.output.trace, seen.passes
    of_prompt = _prompt_tokens(trace, decoder_parts(model))
    if passes.tokens_run[0] != of_prompt:  # a family that is not listed prefills each beam
        of_prompt = [MODES[mode].get("num_beams", 1) * tokens for tokens in of_prompt]
    executed, computed = apart(trace.executed, dims=3), apart(trace.layers.tokens, dims=1)
    for part, (name, counted) in enumerate(
        (("attention", passes.tokens_attended), ("feed-forward parts", passes.tokens_run))
    ):
        expect_equal(of_prompt, counted[0], f"tokens of the prompts per layer, in the trace and counted at {name},")
        if mode == "beam":
            by_layer = torch.tensor(counted[1:]).sum(dim=0).tolist()
            expect_equal(computed[:, part].tolist(), by_layer, f"tokens of each layer, in the trace and at {name},")
        else:
            traced = executed[..., part].sum(dim=1).tolist()  # (steps, layers)
            expect_equal(traced, counted[1:], f"rows per step and layer, in the trace and counted at {name},")
    late = "late keys and values, in the trace and counted at attention,"
    expect_equal(trace.filled, sum(map(sum, passes.tokens_late[1:])), late)
    expect_equal(trace.layers.prompt_late_tokens.tolist(), passes.tokens_late[0], f"in the prefill, {late}")


def _prompt_tokens(trace: Trace, parts: DecoderParts) -> list[int]:
    """Count the tokens of the three prompts that each layer computes: all, or a rectangle of those that run it.

    A layer that reads another layer's keys and values gets the last token of each prompt from its model.
    """
    mask = torch.ones(3, trace.prompt_length) if parts.encoder is not None else prompts(3)[1]
    real = mask.bool()[..., None]  # (rows, prompt, 1)
    if trace.prompt is None:
        return [real.numel() if donor is None else len(real) for donor in parts.donors]
    ran = (trace.prompt & real).sum(dim=1)  # (rows, layers)
    rectangles = ran.amax(dim=0) * (ran > 0).sum(dim=0)
    everywhere = trace.prompt.flatten(0, 1).all(dim=0)
    recurrent = torch.tensor([mixer is not None for mixer in parts.mixers])
    everywhere |= recurrent & (rectangles > 0)
    return torch.where(everywhere, real.numel(), rectangles).tolist()


def law_5_restored(model: PreTrainedModel, strategy: SkipStrategy, mode: str, remembered: DecodeCall = decode) -> None:
    """Check law 5: after decoding, also after an exception, the model is the same as before.

    Args:
        model: A small model in float64.
        strategy: Any strategy; it decodes anew.
        mode: A key of ``MODES``, one way to decode.
        remembered: Not used; all laws of a decode take the same arguments.

    Raises:
        LawViolationError: Classes, attributes, hooks, configs or outputs of the model have changed, or ``applied_to``
            swallowed the exception.
    """
    few: dict[str, Any] = {"max_new_tokens": _FEW_TOKENS, "eos_token_id": None}
    before = snapshot(model)
    decode(model, strategy, mode, **few)
    expect_equal(snapshot(model), before, "after leaving, the model's attributes")
    try:
        decode(model, strategy, mode, **few, logits_processor=LogitsProcessorList([_Interrupt()]))
    except KeyboardInterrupt:
        expect_equal(snapshot(model), before, "after an exception, the model's attributes")
    else:
        raise LawViolationError("applied_to swallowed a KeyboardInterrupt.")


def law_6_no_state(model: PreTrainedModel, strategy: SkipStrategy, mode: str, remembered: DecodeCall = decode) -> None:
    """Check law 6: a used strategy object decodes as a new one.

    Args:
        model: A small model in float64.
        strategy: Any strategy; a copy of it decodes another batch first.
        mode: A key of ``MODES``, one way to decode.
        remembered: Makes the decode of the new object, or gives the one that another law made.

    Raises:
        LawViolationError: Layers or logits differ.
    """
    used, third = copy.deepcopy(strategy), torch.tensor([2])
    decode(model, used, mode, eos_token_id=None)
    here, there = decode(model, used, mode, rows=third), remembered(model, strategy, mode, rows=third)
    what = "a used strategy differs from a fresh one"
    expect_equal(here.output.trace.executed.tolist(), there.output.trace.executed.tolist(), f"{what}: layers")
    for a, b in zip(here.logits, there.logits, strict=True):
        expect_close(a, b, f"{what}: logits")


def law_7_rows(model: PreTrainedModel, strategy: SkipStrategy, mode: str, remembered: DecodeCall = decode) -> None:
    """Check law 7: a sequence decodes in a batch as it does alone.

    Args:
        model: A small model in float64.
        strategy: One whose ``rows_depend`` is None.
        mode: A key of ``MODES``, one way to decode; not "sampling".
        remembered: Makes the decodes, or gives those that another law made.

    Raises:
        LawViolationError: Tokens, layers or the number of steps of a sequence differ.
    """
    batch = remembered(model, strategy, mode).output
    for row in range(3):
        single = remembered(model, strategy, mode, rows=torch.tensor([row])).output
        steps = len(single.trace.live)
        new = single.sequences[0, -steps - 1 :]
        where = f"sequence {row} of a batch differs from the sequence alone"
        there = batch.sequences[row, batch.trace.prompt_length :][: len(new)]
        expect_equal(there.tolist(), new.tolist(), f"{where}: tokens")
        ran = batch.trace.executed[:steps, row].tolist()
        expect_equal(ran, single.trace.executed[:, 0].tolist(), f"{where}: layers")
        expect_equal(int(batch.trace.live[:, row].sum()), steps, f"{where}: steps")


LAWS_OF_A_DECODE = (law_2_never_skip, law_3_replay, law_4_trace, law_5_restored, law_6_no_state, law_7_rows)
"""The laws that take a model, a strategy and a way to decode."""


def law_8_config(strategy: SkipStrategy) -> None:
    """Check law 8: a strategy goes through YAML and pickling unchanged.

    Args:
        strategy: One whose class can be imported.

    Raises:
        LawViolationError: Class or parameters differ afterwards.
    """
    from jsonargparse import ArgumentParser

    config = strategy.config()
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(SkipStrategy, "skip", required=True)
    text = yaml.safe_load(parser.dump(parser.parse_object({"skip": config})))
    from_yaml = parser.instantiate(parser.parse_object(text)).skip
    for other, way in ((from_yaml, "YAML"), (pickle.loads(pickle.dumps(strategy)), "pickling")):
        expect_equal(other.config(), config, f"after {way}, class and parameters")


def law_9_knob(model: PreTrainedModel, settings: Sequence[SkipStrategy]) -> None:
    """Check law 9: on one and the same text, a setting that skips more never runs more layers.

    Args:
        model: A small model in float64.
        settings: At least two settings, in order of more skipping.

    Raises:
        LawViolationError: A setting runs more layers for some token than the one before, or the last one does not run
            fewer in all than the first.
    """
    depths = [_forced_depths(model, setting) for setting in settings]
    for before, after, first, second in zip(depths, depths[1:], settings, settings[1:], strict=False):
        if bool((after > before).any()):
            raise LawViolationError(f"{second!r} runs more layers than {first!r} on the same text.")
    if int(depths[-1].sum()) >= int(depths[0].sum()):
        raise LawViolationError(f"{settings[-1]!r} runs as many layers as {settings[0]!r}: is its parameter used?")


class _Interrupt(LogitsProcessor):
    """Acts as if the user pressed Ctrl-C in the third forward pass."""

    calls = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == 3:
            raise KeyboardInterrupt
        return scores


class _Force(LogitsProcessor):
    """Makes every sequence continue with one fixed text."""

    def __init__(self, text: Tensor) -> None:
        self.text = iter(text.tolist())

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        forced = torch.full_like(scores, -math.inf)
        forced[:, next(self.text)] = 0
        return forced


def _forced_depths(model: PreTrainedModel, strategy: SkipStrategy) -> Tensor:
    """Return the executed layers of each step and sequence, [steps, rows], on a fixed text."""
    text = torch.arange(7, 7 + NEW_TOKENS)
    return decode(model, strategy, logits_processor=LogitsProcessorList([_Force(text)])).output.trace.depths
