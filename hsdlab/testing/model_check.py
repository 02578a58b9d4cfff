"""check_model tries what hsdlab can do on a small random model of any config, without the weights of the real one."""

import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from hsdlab.decoding import replay
from hsdlab.decoding.compiled import check_compilation
from hsdlab.decoding.decisions import Decisions
from hsdlab.decoding.families import DecoderParts, decoder_config, decoder_parts, groups_queries
from hsdlab.decoding.packed import FEWEST_STEPS
from hsdlab.decoding.semantics import check_semantics
from hsdlab.decoding.states import StepState
from hsdlab.decoding.sub_layers import SubLayers
from hsdlab.errors import UserError
from hsdlab.reasons import reason
from hsdlab.strategies import CALM, HSD, FullDepth, ScheduledStrategy, SkipStrategy, Verified
from hsdlab.testing.expect import LawViolationError, expect_close, expect_equal
from hsdlab.testing.laws import law_3_replay
from hsdlab.testing.reduced import reduced_model
from hsdlab.testing.tiny import prompts
from hsdlab.testing.watching import MODES, NEW_TOKENS, Decode, Passes

EXACT, IN_SUITE, REFUSED, WRONG, CRASHED = "exact", "in the suite", "refused", "wrong", "crashed"
"""What may come of a trial; ``IN_SUITE`` where nothing was tried here, since the law suite does it for the family."""

_MATTERS = 1e-3
"""Without a layer, some logit has to change by this share of the largest one."""


_MECHANISMS = {
    "kv_lora_rank": "latent attention",
    "num_experts_per_tok": "experts",
    "alibi": "ALiBi",
    "num_kv_shared_layers": "shared keys and values",
    "attn_logit_softcapping": "a cap in attention",
}
"""Entry of a config -> what it adds to the layers."""


@dataclass(frozen=True)
class Trial:
    """One thing that was tried.

    Attributes:
        what: What was decoded.
        law: What it has to equal, and the number of the law.
        result: ``EXACT``, ``IN_SUITE``, ``REFUSED``, ``WRONG`` or ``CRASHED``.
        reason: Why it is not exact, a sentence; empty where it is.
    """

    what: str
    law: str
    result: str
    reason: str = ""


@dataclass(frozen=True)
class ModelReport:
    """What hsdlab can do with the models of a config.

    Attributes:
        model_type: transformers' name of the family.
        model_class: transformers' class of the model; empty where none could be built.
        proven: Whether the family is in the law suite. Others are probed when a strategy first meets them.
        mechanisms: What the layers are made of, each a few words.
        trials: What was tried.
        idle: Layers that hardly change the logits of the small model, so that nothing was learnt about them.
    """

    model_type: str
    model_class: str
    proven: bool
    mechanisms: tuple[str, ...]
    trials: tuple[Trial, ...]
    idle: tuple[int, ...] = ()

    @property
    def result(self) -> str:
        """``EXACT`` if full depth and a schedule decode exactly and nothing is wrong; else the worst of the trials."""
        results = {trial.result for trial in self.trials}
        bad = next((each for each in (CRASHED, WRONG) if each in results), None)
        return bad or (EXACT if all(trial.result == EXACT for trial in self.trials[:2]) else REFUSED)

    @property
    def reason(self) -> str:
        """Why the models do not decode exactly, a sentence; empty where they do."""
        if self.result == EXACT:
            return ""
        return next(trial.reason for trial in self.trials if trial.result == self.result)


class _OwesMuch(SkipStrategy):
    """Each row runs every third layer, in turn, so that every layer owes keys and values of several steps."""

    rows_depend = "a row's layers depend on its place in the batch"

    def plan(self, state: StepState) -> Tensor:
        layers, rows = torch.arange(state.num_layers), torch.arange(state.rows)[:, None]
        return (layers + rows + state.step) % min(3, state.num_layers) == 0


class _SkipsInPrompts(ScheduledStrategy):
    """Skips every third layer, another one for each token of the prompt and for each new token."""

    def layers_at(self, step: int, num_layers: int, max_steps: int) -> list[int]:
        return [i for i in range(num_layers) if (i + step) % 3]

    def prompt_layers(self, position: int, prompt_length: int, num_layers: int) -> list[int]:
        return [i for i in range(num_layers) if (i + position) % 3 != 1]


class _InParts(ScheduledStrategy):
    """Attention of some layers and the MLP of others."""

    def layers_at(self, step: int, num_layers: int, max_steps: int) -> SubLayers:
        layers = range(num_layers)
        return SubLayers([i for i in layers if (i + step) % 3], [i for i in layers if (i + step) % 4])


def check_model(config: PreTrainedConfig) -> ModelReport:
    """Build a small random model of a config, and decode with it in every way that hsdlab has.

    Three left-padded prompts, longer than any window, are decoded in float32. Logits have to agree within 1e-4 of the
    largest one.

    Args:
        config: Of any model of transformers; not changed.

    Returns:
        What was tried and what came of it. Nothing that a family does raises.
    """
    try:
        model = reduced_model(config)
    except UserError as error:
        built = Trial("A small random model", "", REFUSED, str(error))
        return ModelReport(config.model_type, "", False, (), (built,))
    name = type(model).__name__
    found: list[DecoderParts] = []

    def parts_are_found() -> None:
        found.append(decoder_parts(model))
        if not found[0].proven:
            check_semantics(found[0])

    probe = _tried("The parts of the model", "the probe: replay, and the model itself", parts_are_found)
    if probe.result != REFUSED:
        plain = _tried("transformers' own generate", "", lambda: _generates(model))
        if plain.result == CRASHED:  # nothing that hsdlab could decode with fewer layers
            probe = Trial(plain.what, "", REFUSED, f"transformers' own generate fails: {plain.reason}")
    if probe.result != EXACT:
        return ModelReport(config.model_type, name, False, (), (probe,))
    trials = tuple(_tried(what, *trial) for what, trial in _trials(found[0]).items())
    return ModelReport(
        config.model_type, name, found[0].proven, mechanisms(found[0]), trials, tuple(_idle_layers(found[0]))
    )


def _trials(parts: DecoderParts) -> dict[str, tuple[str, Callable[[], str | None]]]:
    model, replayed = parts.model, "replay (law 3)"

    def equals_replay(strategy: SkipStrategy, *modes: str, **options: Any) -> Callable[[], None]:
        def trial() -> None:
            for mode in modes or ("greedy",):
                law_3_replay(model, strategy, mode, partial(_decoded, **options))

        return trial

    return {
        "Full depth, greedy and beams": ("model.generate (law 1)", lambda: _equals_generate(model)),
        "Schedules that shrink": (replayed, equals_replay(HSD(2), "greedy", "beam")),
        "Layers with late KV computations": (replayed, equals_replay(_OwesMuch(), "greedy", "beam")),
        "Early exit": (replayed, equals_replay(CALM(0.4, probe_layers=2))),
        "Early exit with candidate tokens": (replayed, equals_replay(CALM(0.4, probe_layers=2, shortlist=8))),
        "Prompt schedules": (replayed, equals_replay(_SkipsInPrompts())),
        "Attention and MLP apart": (replayed, equals_replay(_InParts())),
        "Verified drafts": ("full depth's text (law 12)", lambda: _verified(model)),
        "Packed weights": (replayed, equals_replay(HSD(2), max_new_tokens=FEWEST_STEPS)),
        "Compiled decode steps": ("", lambda: _compiled(parts)),
    }


def _tried(what: str, law: str, trial: Callable[[], str | None]) -> Trial:
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return Trial(what, law, trial() or EXACT)
    except LawViolationError as error:
        return Trial(what, law, WRONG, str(error))
    except UserError as error:
        return Trial(what, law, REFUSED, str(error))
    except Exception as error:  # of a model that hsdlab was not made for, of any class
        return Trial(what, law, CRASHED, f"{reason(error)}.")


def _compiled(parts: DecoderParts) -> str:
    check_compilation(parts, Decisions(HSD(2), parts.num_layers, NEW_TOKENS))
    return IN_SUITE


def _decoded(model: PreTrainedModel, strategy: SkipStrategy | None, mode: str = "greedy", **options: Any) -> Decode:
    """Decode three prompts, as :func:`~hsdlab.testing.decode` does, for layers whose parts have any names."""
    input_ids, mask = prompts(3)
    call: dict[str, Any] = {
        "input_ids": input_ids,
        "attention_mask": mask,
        "max_new_tokens": NEW_TOKENS,
        "eos_token_id": None,
        "return_dict_in_generate": True,
        "output_scores": True,
        **MODES[mode],
        **options,
    }
    passes = Passes()

    def note(module: PreTrainedModel, args: tuple, output: Any) -> None:
        passes.logits.append(output.logits[:, -1].clone())

    with torch.random.fork_rng(devices=[]), ExitStack() as opened:
        torch.manual_seed(0)
        run = None if strategy is None else opened.enter_context(strategy.applied_to(model))
        opened.callback(model.register_forward_hook(note).remove)  # now, since a strategy may probe a model it meets
        plain = model.generate(**call)
    output: Any = plain if run is None else run.output
    return Decode(output, passes)


def _generates(model: PreTrainedModel) -> None:
    _decoded(model, None)


def _equals_generate(model: PreTrainedModel) -> None:
    """Check law 1."""
    for mode in ("greedy", "beam"):
        here, plain = _decoded(model, FullDepth(), mode), _decoded(model, None, mode)
        for step, (got, expected) in enumerate(zip(here.logits, plain.logits, strict=True)):
            expect_close(got, expected, f"{mode}: the logits of pass {step} differ from those of model.generate")
        tokens, expected_tokens = here.output.sequences.tolist(), plain.output.sequences.tolist()
        expect_equal(tokens, expected_tokens, f"{mode}: the tokens of full depth and of model.generate")


def _verified(model: PreTrainedModel) -> None:
    drafted = _decoded(model, Verified(HSD(2), 3)).output.sequences.tolist()
    full = _decoded(model, FullDepth()).output.sequences.tolist()
    expect_equal(drafted, full, "the tokens of verified drafts and of full depth")


def _idle_layers(parts: DecoderParts) -> Iterator[int]:
    input_ids, mask = prompts(3)
    executed = torch.ones(*input_ids.shape, parts.num_layers, dtype=torch.bool)
    call: dict[str, Any] = {"input_ids": input_ids, "attention_mask": mask, "logits_to_keep": 1}
    with torch.no_grad():
        full = replay(parts.model, executed=executed, **call)
        for layer in range(parts.num_layers):
            without = executed.clone()
            without[:, -1, layer] = False
            if (replay(parts.model, executed=without, **call) - full).abs().max() < _MATTERS * full.abs().max():
                yield layer


def mechanisms(parts: DecoderParts) -> tuple[str, ...]:
    """Name what the layers of a model are made of.

    Args:
        parts: The model's parts.

    Returns:
        A few words each.
    """
    config = decoder_config(parts.model.config)
    kinds: Counter[str] = Counter(getattr(config, "layer_types", None) or ())
    kinds = kinds or Counter("windowed" if window else "full_attention" for window in parts.windows)
    said = [f"{count} layers {kind}" for kind, count in kinds.items()]
    said += [words for entry, words in _MECHANISMS.items() if getattr(config, entry, None)]
    said += ["grouped heads"] if groups_queries(parts.model) else []
    said += ["a scale or cap after the head"] if parts.after_head else []
    return tuple(dict.fromkeys(said))
