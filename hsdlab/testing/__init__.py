"""The laws that every strategy obeys, for the project's tests and for strategies of your own.

    from hsdlab.testing import check_strategy
    check_strategy(MyStrategy(keep=6))

raises :class:`LawViolationError` with every law that the strategy breaks, and why. The laws are numbered as in
CONTRIBUTING.md; the first (full depth equals plain ``generate``) concerns the engine and is in the project's tests.
"""

import copy
import math
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import yaml
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
)

from hsdlab.decoding import DecodeOutput, replay
from hsdlab.decoding.families import decoder_parts, feed_forward
from hsdlab.strategies import FullDepth, SkipStrategy

TINY_FAMILIES = ("gpt2", "gpt_neox", "llama", "mistral", "opt", "phi", "qwen2")
"""The model families that the laws are proven for, by transformers' ``model_type``."""

MODES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beam": {"num_beams": 4},
    "sampling": {"do_sample": True, "temperature": 2.0},
}
"""transformers' options of the three ways to decode."""

VOCABULARY = 64
PROMPT_TOKENS = 5
NEW_TOKENS = 8
END_TOKENS = [3, 4, 5, 6]  # several, so that rows of random text end at different times


class LawViolationError(AssertionError):
    """A strategy breaks one of the laws; the message says which and how."""


def tiny_model(
    family: str = "llama",
    *,
    num_layers: int = 6,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    **options: Any,
) -> PreTrainedModel:
    """A small random model of one family, in which every layer matters.

    Weights are drawn wider than transformers does and the embeddings are untied: as initialised, tiny models repeat
    themselves and dropping a layer is hardly seen. The head is sharper still, so that confidences spread over 0 to 1.
    float64 makes equality of two orders of arithmetic sharp.

    Args:
        family: One of ``TINY_FAMILIES``, or another ``model_type`` of transformers.
        num_layers: L.
        dtype: Of the weights.
        seed: Of the weights.
        **options: More of the model's config.
    """
    sizes: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 64,
        "ffn_dim": 64,
        "n_inner": 64,
        "num_hidden_layers": num_layers,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "initializer_range": 0.3,
        "init_std": 0.3,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": 0,
    }
    if family in ("llama", "mistral", "qwen2"):
        sizes["num_key_value_heads"] = 2
    if family == "mistral":
        sizes["sliding_window"] = None
    if family == "opt":
        sizes["word_embed_proj_dim"] = 16  # with the projections of OPT-350m
    config = AutoConfig.for_model(family, **{**sizes, **options})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config).to(dtype).eval()
    with torch.no_grad():
        model.get_output_embeddings().weight *= 4
    return model


def prompts(rows: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random prompts and their mask, [rows, PROMPT_TOKENS]; rows after the first are left-padded, each differently."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(7, VOCABULARY, (rows, PROMPT_TOKENS), generator=generator)
    padding = torch.arange(rows)[:, None] % 3  # 0, 1, 2 tokens
    mask = (torch.arange(PROMPT_TOKENS)[None] >= padding).long()
    return ids * mask, mask


@dataclass(frozen=True)
class Decode:
    """One decode seen from outside: hsdlab's output, the logits of each pass and what the feed-forward parts did.

    Attributes:
        output: What hsdlab returned.
        logits: Per forward pass, the head's output at the last position [rows, vocabulary], prompt pass first.
        tokens_run: Per forward pass and layer, the tokens for which the layer's feed-forward part was called.
    """

    output: DecodeOutput
    logits: list[Tensor]
    tokens_run: list[list[int]]


def decode(
    model: PreTrainedModel,
    strategy: SkipStrategy,
    mode: str = "greedy",
    rows: Tensor | None = None,
    **options: Any,
) -> Decode:
    """Decode three left-padded random prompts, or some rows of them, and look on through hooks.

    Args:
        model: The model.
        strategy: The strategy, applied through ``strategy.applied_to``.
        mode: A key of ``MODES``.
        rows: Indices of the prompts to decode; all three if not given.
        **options: More of transformers' options, or other ``input_ids`` and ``attention_mask``.
    """
    ids, mask = prompts(3)
    if rows is not None:
        ids, mask = ids[rows], mask[rows]
        ids, mask = ids[:, mask.any(0)], mask[:, mask.any(0)]  # a single row needs no padding
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
    with watched(model) as (logits, tokens_run), torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        with strategy.applied_to(model) as run:
            model.generate(**call)
    if run.output is None:
        raise LawViolationError(f"{strategy!r}: applied_to let model.generate run without it.")
    return Decode(run.output, logits, tokens_run)


@contextmanager
def watched(model: PreTrainedModel) -> Iterator[tuple[list[Tensor], list[list[int]]]]:
    """Record the logits of each forward pass, and the tokens each layer's feed-forward part was called for."""
    parts = decoder_parts(model)
    logits: list[Tensor] = []
    tokens_run: list[list[int]] = []

    def begin(*_: Any) -> None:
        tokens_run.append([0] * parts.num_layers)

    def count(layer: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            tokens_run[-1][layer] += args[0].numel() // args[0].shape[-1]

        return hook

    def keep(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        if output.dim() == 3:  # [rows, length, vocabulary]; an exit's probe is [rows, vocabulary]
            logits.append(output[:, -1].detach().clone())

    handles = [model.get_decoder().register_forward_pre_hook(begin), parts.head.register_forward_hook(keep)]
    handles += [feed_forward(layer).register_forward_pre_hook(count(i)) for i, layer in enumerate(parts.layers)]
    try:
        yield logits, tokens_run
    finally:
        for handle in handles:
            handle.remove()


# The laws, each on one strategy ------------------------------------------------------------------------------------


def law_2_never_skip(model: PreTrainedModel, strategy: SkipStrategy, mode: str) -> None:
    """The setting that never skips equals FullDepth, in tokens and logits."""
    setting = strategy.never_skip()
    if setting is None:
        return
    if type(setting) is not type(strategy):
        raise LawViolationError(f"never_skip() gave a {type(setting).__name__}; expected a {type(strategy).__name__}.")
    here, full = decode(model, setting, mode), decode(model, FullDepth(), mode)
    _expect(here.output.sequences, full.output.sequences, "the tokens of never_skip() differ from FullDepth's")
    for step, (a, b) in enumerate(zip(here.logits, full.logits, strict=True)):
        _expect(a, b, f"the logits of never_skip() differ from FullDepth's in pass {step}")


def law_3_replay(model: PreTrainedModel, strategy: SkipStrategy, mode: str) -> None:
    """The logits of each step equal one masked teacher-forced pass over the trace."""
    seen = decode(model, strategy, mode)
    output = seen.output
    _, prompt_mask = prompts(3)
    new = output.sequences.shape[1] - PROMPT_TOKENS
    mask = torch.cat([prompt_mask, torch.ones(3, new, dtype=torch.long)], dim=1)
    with torch.no_grad():
        expected = replay(
            model,
            input_ids=output.sequences,
            attention_mask=mask,
            executed=output.trace.mask(PROMPT_TOKENS),
        )[:, PROMPT_TOKENS - 1 : -1]  # (rows, new, vocabulary)
    beams = MODES[mode].get("num_beams", 1)
    alive = torch.cat([torch.ones(1, 3, dtype=torch.bool), output.trace.live])  # (new, rows)
    for step, row in alive.nonzero().tolist():
        candidates = seen.logits[step][row * beams : (row + 1) * beams]  # (beams, vocabulary)
        distance = (candidates - expected[row, step]).abs().amax(dim=1).min()
        _expect(distance, torch.zeros_like(distance), f"row {row}: the logits of pass {step} differ from replay's")
    if output.sequences_scores is not None:
        chosen = expected.float().log_softmax(-1).gather(-1, output.sequences[:, PROMPT_TOKENS:, None]).squeeze(-1)
        scores = (chosen * alive.T).sum(1) / alive.sum(0)
        _expect(output.sequences_scores, scores, "sequences_scores differ from replay's", tolerance=1e-4)


def law_4_trace(model: PreTrainedModel, strategy: SkipStrategy, mode: str) -> None:
    """The trace equals an independent count: in a skipped layer, the feed-forward part is not called."""
    if mode == "beam":  # rows of the search are not the returned rows; its total is checked
        seen = decode(model, strategy, mode)
        _expect_equal(sum(map(sum, seen.tokens_run[1:])), seen.output.trace.compute_depth_sum, "compute_depth_sum")
        return
    seen = decode(model, strategy, mode, eos_token_id=None)
    counted = torch.tensor(seen.tokens_run[1:])  # (steps, layers)
    traced = seen.output.trace.executed.sum(dim=1)
    _expect_equal(counted.tolist(), traced.tolist(), "rows per step and layer, counted at the feed-forward parts,")


def law_5_restored(model: PreTrainedModel, strategy: SkipStrategy, mode: str) -> None:
    """After leaving, normally or by an exception, the model is as before."""
    before = _snapshot(model)
    decode(model, strategy, mode)
    _expect_equal(_snapshot(model), before, "after leaving, the model's attributes")

    class Interrupt(LogitsProcessor):
        calls = 0

        def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
            self.calls += 1
            if self.calls == 3:
                raise KeyboardInterrupt
            return scores

    try:
        decode(model, strategy, mode, eos_token_id=None, logits_processor=LogitsProcessorList([Interrupt()]))
    except KeyboardInterrupt:
        _expect_equal(_snapshot(model), before, "after an exception, the model's attributes")
    else:
        raise LawViolationError("applied_to swallowed a KeyboardInterrupt.")


def law_6_no_state(model: PreTrainedModel, strategy: SkipStrategy, mode: str) -> None:
    """A used strategy object equals a fresh one."""
    used, fresh = copy.deepcopy(strategy), copy.deepcopy(strategy)
    decode(model, used, mode, eos_token_id=None)
    _expect_same_decode(
        decode(model, used, mode, rows=torch.tensor([2])),
        decode(model, fresh, mode, rows=torch.tensor([2])),
        "a used strategy differs from a fresh one",
    )


def law_7_rows(model: PreTrainedModel, strategy: SkipStrategy, mode: str) -> None:
    """A batch of three equals three single runs, unless the class says why not (``rows_depend``)."""
    if strategy.rows_depend or mode == "sampling":  # sampling draws for the batch as a whole
        return
    batch = decode(model, strategy, mode).output
    for row in range(3):
        single = decode(model, strategy, mode, rows=torch.tensor([row])).output
        steps = len(single.trace.live)
        new = single.sequences[0, -steps - 1 :]
        where = f"row {row} of a batch differs from the row alone"
        _expect_equal(batch.sequences[row, PROMPT_TOKENS:][: len(new)].tolist(), new.tolist(), f"{where}: tokens")
        ran = batch.trace.executed[:steps, row].tolist()
        _expect_equal(ran, single.trace.executed[:, 0].tolist(), f"{where}: layers")
        _expect_equal(int(batch.trace.live[:, row].sum()), steps, f"{where}: steps")


LAWS_OF_A_DECODE = (law_2_never_skip, law_3_replay, law_4_trace, law_5_restored, law_6_no_state, law_7_rows)
"""The laws that take a model, a strategy and a way to decode."""

NOT_FOR_ORACLES = (law_3_replay, law_4_trace)
"""Laws from which a strategy that calls itself an oracle (``is_oracle``) is exempt: it claims what did not happen."""


def law_8_config(strategy: SkipStrategy) -> None:
    """The strategy survives config, YAML and back, and pickling."""
    from jsonargparse import ArgumentParser

    config = strategy.config()
    if "<locals>" in config["class_path"]:
        return  # a class inside a function cannot be imported by name, so neither can a config name it
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(SkipStrategy, "skip", required=True)
    text = yaml.safe_load(parser.dump(parser.parse_object({"skip": config})))
    from_yaml = parser.instantiate(parser.parse_object(text)).skip
    for other, way in ((from_yaml, "YAML"), (pickle.loads(pickle.dumps(strategy)), "pickling")):
        _expect_equal(other.config(), config, f"after {way}, class and parameters")


def law_9_knob(model: PreTrainedModel, settings: Sequence[SkipStrategy]) -> None:
    """On a fixed text, each setting runs no more layers than the one before, and the last fewer than the first."""
    depths = [_forced_depths(model, setting) for setting in settings]
    for before, after, first, second in zip(depths, depths[1:], settings, settings[1:], strict=False):
        if bool((after > before).any()):
            raise LawViolationError(f"{second!r} runs more layers than {first!r} on the same text.")
    if len(depths) > 1 and int(depths[-1].sum()) >= int(depths[0].sum()):
        raise LawViolationError(f"{settings[-1]!r} runs as many layers as {settings[0]!r}: is its parameter used?")


def check_strategy(
    strategy: SkipStrategy,
    model: PreTrainedModel | None = None,
    *,
    settings: Sequence[SkipStrategy] | None = None,
) -> list[str]:
    """Put a strategy through the laws, greedily, with beams and sampling, on batches with left padding.

    Args:
        strategy: The strategy. Its own classes must be importable for law 8 to be checked.
        model: A small model in float64; a random Llama of 24 layers if not given.
        settings: Settings of the strategy in order of more skipping, for law 9; ``[never_skip(), strategy]`` if not
            given (left out where the two are the same setting or there is no ``never_skip``).

    Returns:
        The names of the laws that were checked.

    Raises:
        LawViolationError: With all violations, one a line.
    """
    model = tiny_model(num_layers=24) if model is None else model
    if settings is None:
        never = strategy.never_skip()
        differs = never is not None and never.config() != strategy.config()
        settings = [never, strategy] if never is not None and differs else []
    checked, violations = [], []

    def check(law: Callable[..., None], *args: Any) -> None:
        if law.__name__ not in checked:
            checked.append(law.__name__)
        try:
            law(*args)
        except LawViolationError as violation:
            violations.append(f"{law.__name__} ({', '.join(map(str, args[2:]))}): {violation}")

    for mode in MODES:
        for law in LAWS_OF_A_DECODE:
            if not (strategy.is_oracle and law in NOT_FOR_ORACLES):
                check(law, model, copy.deepcopy(strategy), mode)  # what an earlier law left in it would hide a memory
    check(law_8_config, strategy)
    if settings:
        check(law_9_knob, model, settings)
    if violations:
        raise LawViolationError(f"{strategy!r} breaks {len(violations)} law(s):\n" + "\n".join(violations))
    return checked


# Helpers -----------------------------------------------------------------------------------------------------------


class _Force(LogitsProcessor):
    """Makes every row go on with one fixed text."""

    def __init__(self, text: Tensor) -> None:
        self.text = text

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        forced = torch.full_like(scores, -math.inf)
        forced[:, self.text[input_ids.shape[1] - PROMPT_TOKENS]] = 0
        return forced


def _forced_depths(model: PreTrainedModel, strategy: SkipStrategy) -> Tensor:
    """Depth of each step and row [steps, rows] on a fixed text."""
    text = torch.arange(7, 7 + NEW_TOKENS)
    return decode(model, strategy, logits_processor=LogitsProcessorList([_Force(text)])).output.trace.depths


def _snapshot(model: PreTrainedModel) -> dict[str, Any]:
    """What must be as before: classes, attributes, hooks, configs and outputs."""
    found: dict[str, Any] = {
        "config": model.config.to_dict(),
        "generation_config": model.generation_config.to_dict(),
    }
    for name, module in model.named_modules():
        found[name] = (type(module), {key: _frozen(value) for key, value in vars(module).items()})
    with torch.no_grad():
        found["output"] = model(prompts(1)[0]).logits.tolist()
    return found


def _frozen(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: id(item) for key, item in value.items()}
    return value if isinstance(value, bool | int | float | str | None) else id(value)


def _expect_same_decode(here: Decode, there: Decode, what: str) -> None:
    _expect_equal(here.output.trace.executed.tolist(), there.output.trace.executed.tolist(), f"{what}: layers")
    for a, b in zip(here.logits, there.logits, strict=True):
        _expect(a, b, f"{what}: logits")


def _expect(got: Tensor, expected: Tensor, what: str, tolerance: float = 1e-9) -> None:
    if got.shape != expected.shape:
        raise LawViolationError(f"{what}: got shape {tuple(got.shape)}, expected {tuple(expected.shape)}.")
    distance = float((got.double() - expected.double()).abs().max()) if got.numel() else 0.0
    if not distance <= tolerance:
        raise LawViolationError(f"{what}: the largest difference is {distance:.3g}, expected at most {tolerance:.0e}.")


def _expect_equal(got: Any, expected: Any, what: str) -> None:
    if got != expected:
        raise LawViolationError(f"{what} differ: got {_short(got)}, expected {_short(expected)}.")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 300 else f"{text[:300]} …"
