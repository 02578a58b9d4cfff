"""``generate()``: greedy, sampling and beam search with skipped layers, on transformers' own ``model.generate``.

:func:`applied` is the one way in. Inside its block, every call of ``model.generate`` decodes under the strategy.
Everything else that the model does, such as teacher-forced forward passes, stays at full depth.
"""

import copy
import dataclasses
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList, StopStringCriteria

from hsdlab.decoding.cache import SkipCache
from hsdlab.decoding.calls import (
    check_call,
    check_context,
    check_tokens,
    decoder_prompt_length,
    max_new_tokens_of,
    merged_config,
)
from hsdlab.decoding.compiled import Compilation, CompiledDecode, check_compilation, compilation_of
from hsdlab.decoding.decisions import Decisions, Strategy
from hsdlab.decoding.encoder_decoder import CrossAttention, EncoderDecoderPair, encoder_timed
from hsdlab.decoding.ends import RowEnds, finished_sources_noted, real_tokens_of
from hsdlab.decoding.families import DecoderParts, UnsupportedModelError, decoder_parts, plain_model
from hsdlab.decoding.finite import FiniteLogits
from hsdlab.decoding.guard import every_pass_recorded
from hsdlab.decoding.live_rows import LiveRows
from hsdlab.decoding.output import DecodeOutput
from hsdlab.decoding.packed import packed_weights
from hsdlab.decoding.semantics import check_passes, check_prompts, check_semantics
from hsdlab.decoding.settled import settled_logits
from hsdlab.decoding.shared_prefill import prefill_to_share
from hsdlab.decoding.skipping import skippable
from hsdlab.decoding.static_cache import StaticCache
from hsdlab.decoding.timing import Timing, now_s
from hsdlab.decoding.trace import Trace, trace_along
from hsdlab.decoding.verified import verified_decode
from hsdlab.decoding.verified_loop import DraftedStrategy
from hsdlab.errors import UserError


@dataclass
class AppliedRun:
    """A strategy while it is applied to a model.

    Attributes:
        strategy: Decides which layers run.
        max_new_tokens: T of the calls of ``model.generate`` that give no length themselves; None leaves them to the
            model's own default.
        on_decode: Called with the result of each decode; None for no call.
        output: The result of the last decode; None before the first.
    """

    strategy: Strategy
    max_new_tokens: int | None = None
    on_decode: Callable[[DecodeOutput], None] | None = None
    output: DecodeOutput | None = field(default=None, init=False)

    @property
    def trace(self) -> Trace:
        """The trace of the last ``model.generate`` call.

        Raises:
            RuntimeError: No call has finished yet.
        """
        if self.output is None:
            raise RuntimeError("No model.generate call has finished under this strategy yet, so there is no trace.")
        return self.output.trace


class _Generate:
    """Replaces ``model.generate`` while a strategy is applied; takes and returns the same, and takes ``compile``."""

    def __init__(self, parts: DecoderParts, run: AppliedRun) -> None:
        self.parts = parts
        self.run = run

    def __call__(
        self, inputs: Tensor | None = None, generation_config: GenerationConfig | None = None, **kwargs: Any
    ) -> Any:
        input_ids = kwargs.pop("input_ids", None) if inputs is None else inputs
        compilation = compilation_of(kwargs.pop("compile", False))
        output = _decode(self.parts, self.run, input_ids, generation_config, kwargs, compilation)
        sources = (kwargs, vars(generation_config or GenerationConfig()), vars(self.parts.model.generation_config))
        answers = (source.get("return_dict_in_generate") for source in sources)
        return output if next((answer for answer in answers if answer is not None), False) else output.sequences


@contextmanager
def applied(
    model: nn.Module,
    strategy: Strategy,
    *,
    max_new_tokens: int | None = None,
    on_decode: Callable[[DecodeOutput], None] | None = None,
) -> Iterator[AppliedRun]:
    """Decode every ``model.generate`` call inside the block under ``strategy``; the model is restored on leaving.

    Args:
        model: A transformers language model, or a peft model around one.
        strategy: Decides which layers run; only one can be applied to a model at a time.
        max_new_tokens: T of the calls inside the block that give no length themselves, at least 1. None leaves them to
            the model's own default.
        on_decode: Called with the result of each decode; None for no call.

    Yields:
        The run; after a call of ``model.generate`` it has the call's ``output`` and ``trace``.

    Raises:
        UserError: Another strategy is applied to the model, this one does not fit it, or ``max_new_tokens`` is below 1.
        UnsupportedModelError: hsdlab cannot decode this model.
    """
    parts = decoder_parts(model)
    other = active_run(parts.model)
    if other is not None:
        raise UserError(
            f"{type(other.strategy).__name__} is already applied to this model; leave its block before applying "
            f"{type(strategy).__name__}."
        )
    if max_new_tokens is not None and max_new_tokens < 1:
        raise UserError(f"max_new_tokens is {max_new_tokens}; expected at least 1.")
    _check_strategy(strategy)
    strategy.check_model(parts)
    _check_whole(parts)
    decisions = Decisions(strategy, parts.num_layers, max_new_tokens or 2)  # a setting beyond this model is refused
    if not parts.proven:
        check_semantics(parts)
        if decisions.schedules_prompt:
            check_prompts(parts)
    if isinstance(strategy, DraftedStrategy):
        check_passes(parts)
    run = AppliedRun(strategy, max_new_tokens, on_decode)
    attributes = vars(parts.model)
    own = {"generate": attributes["generate"]} if "generate" in attributes else {}
    with skippable(parts):
        attributes["generate"] = _Generate(parts, run)
        try:
            yield run
        finally:
            del attributes["generate"]
            attributes.update(own)


def _check_whole(parts: DecoderParts) -> None:
    """Refuse a model whose weights are shared out: its processes gather them together, in equally many passes."""
    fsdp: Any = sys.modules.get("torch.distributed.fsdp")  # slow to import, and there if a model is shared out
    if fsdp is not None and any(isinstance(layer, fsdp.FSDPModule) for layer in parts.layers):
        raise UnsupportedModelError(
            f"The weights of {type(parts.model).__name__} are shared out over processes (FSDP), which gather them in "
            "each decode step and wait for ever for one whose texts have ended. Decode with the whole model in each "
            "process; replay, and training on it, take a model as it is."
        )


def _check_strategy(strategy: object) -> None:
    """Refuse what is not a strategy, such as a name or a class."""
    asked = ("check_model", "scheduled_layers", "plan")
    if isinstance(strategy, type) or not all(callable(getattr(strategy, name, None)) for name in asked):
        hint = f"; make an object of it: {strategy.__name__}()" if isinstance(strategy, type) else ""
        raise UserError(f"strategy={strategy!r}: expected an object of a strategy's class, such as HSD(){hint}.")


def active_run(model: nn.Module) -> AppliedRun | None:
    """Find the strategy that is applied to a model.

    Args:
        model: A transformers model, or a peft model around one.

    Returns:
        The run of the :func:`applied` block that is open, or None if there is none.
    """
    generate_attribute = vars(plain_model(model)).get("generate")
    return generate_attribute.run if isinstance(generate_attribute, _Generate) else None


def generate(
    model: nn.Module,
    *,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    strategy: Strategy,
    compile: bool | Compilation = False,
    **kwargs: Any,
) -> DecodeOutput:
    """Decode new tokens under a strategy.

    Args:
        model: A transformers language model, decoder-only or encoder-decoder, or a peft model around one. It is the
            same after decoding as before.
        input_ids: The prompts, LongTensor [rows, prompt], left-padded. Of an encoder-decoder model, what the encoder
            reads, padded as the model was trained (on the right).
        attention_mask: [rows, prompt], 1 for tokens and 0 for padding. None lets transformers infer it from the
            padding token.
        strategy: Decides which layers run; ``FullDepth()`` runs all.
        compile: Compile the decode steps, and capture them as CUDA graphs on CUDA. Only for a schedule whose sets of
            layers shrink, such as HSD's and SkipDecode's. The first decode of a shape takes much longer
            (``DecodeOutput.warmup``).
        **kwargs: Keywords of transformers' ``generate``: ``max_new_tokens``, ``num_beams``, ``do_sample``,
            ``eos_token_id`` … T is ``max_new_tokens``, or ``max_length`` minus the prompt's length. The prompt of an
            encoder-decoder model is the decoder's: its start token, or ``decoder_input_ids``.

    Returns:
        The sequences, their scores, the trace and the timing.

    Raises:
        UserError: For a bad length or padding, a prompt beyond the model's context, what `DecodeOutput` does not hold
            (raw logits, hidden states, attention weights), and what cannot be combined with skipped layers: assisted
            decoding, static caches, a pre-filled cache, ``use_cache=False``; with ``compile``, also for what cannot be
            compiled.
        UnsupportedModelError: hsdlab cannot decode this model.
        RunError: torch cannot compile a layer.
        RuntimeError: transformers returned without decoding, which no input is known to cause.
    """
    with applied(model, strategy) as run:
        parts = decoder_parts(model)
        generation_config = kwargs.pop("generation_config", None)
        config = merged_config(parts.model, generation_config, kwargs)
        for name in ("output_logits", "output_hidden_states", "output_attentions"):
            if getattr(config, name):
                raise UserError(
                    f"{name}=True: DecodeOutput does not hold this. Call model.generate(…, {name}=True, "
                    "return_dict_in_generate=True) inside `with strategy.applied_to(model):`."
                )
        if config.num_beams > 1 and not config.output_scores:
            # transformers gives sequences_scores only along with the scores of every step
            if generation_config is None:
                kwargs["output_scores"] = True
            else:
                generation_config = copy.deepcopy(generation_config)
                generation_config.output_scores = True
        kwargs["attention_mask"] = attention_mask
        _decode(parts, run, input_ids, generation_config, kwargs, compilation_of(compile))
    output = run.output
    if output is None:
        raise RuntimeError("transformers' generate returned without decoding.")
    return output if config.output_scores else dataclasses.replace(output, scores=None)


def _decode(
    parts: DecoderParts,
    run: AppliedRun,
    input_ids: Any,
    generation_config: GenerationConfig | None,
    kwargs: dict[str, Any],
    compilation: Compilation | None,
) -> Any:
    """Run transformers' ``generate`` on our cache; return its output, and put ours into ``run.output``."""
    model = parts.model
    config = merged_config(model, generation_config, kwargs)
    check_call(config, input_ids, kwargs, parts.encoder is not None)
    check_tokens(input_ids, model)
    prompt_length, source_length = input_ids.shape[1], 0
    if parts.encoder is not None:
        prompt_length, source_length = decoder_prompt_length(model, config, kwargs), input_ids.shape[1]
    max_steps = max_new_tokens_of(model, run.max_new_tokens, generation_config, kwargs, prompt_length)
    mask = kwargs.get("attention_mask") if parts.encoder is None else None
    check_context(model, prompt_length, max_steps, mask, source_length)

    forced: dict[str, Any] = {"return_dict_in_generate": True, "use_cache": True}
    forced |= {"max_new_tokens": max_steps, "max_length": None}
    drafted = isinstance(run.strategy, DraftedStrategy)
    if config.stop_strings is not None and config.num_beams == 1 and not drafted:
        forced["stop_strings"] = None  # RowEnds checks them
    if generation_config is None:
        kwargs = {**kwargs, **forced}
    else:  # transformers wants options in one place only
        generation_config = copy.deepcopy(generation_config)
        generation_config.update(**forced)
        kwargs = {name: value for name, value in kwargs.items() if name not in forced}
    if isinstance(run.strategy, DraftedStrategy):
        raw, run.output = verified_decode(
            parts, run.strategy, input_ids, config, generation_config, kwargs, max_steps, compilation
        )
        if run.on_decode is not None:
            run.on_decode(run.output)
        return raw
    decisions = Decisions(run.strategy, parts.num_layers, max_steps, sources=len(input_ids))
    ends = None
    custom = config.stop_strings is not None or kwargs.get("stopping_criteria")
    rows = len(input_ids) * max(config.num_beams, config.num_return_sequences)
    seen_from_outside = config.output_hidden_states or config.output_attentions
    searches = config.num_beams > 1
    if searches:  # a criterion of the caller's may look at the running beams of other sources
        knows_the_end = not (config.do_sample or kwargs.get("stopping_criteria"))
    else:  # without an end-of-sequence token, transformers writes on after an end
        knows_the_end = rows == len(input_ids) and config.eos_token_id is not None
    leaves_out = (
        knows_the_end
        and len(input_ids) > 1
        and model.device.type == "cpu"
        and not (seen_from_outside or compilation or decisions.may_fill or parts.shares)
        and decisions.same_for_all_rows
    )
    if not searches and (custom or leaves_out or (decisions.asks and rows > 1)):
        criteria = list(kwargs.get("stopping_criteria") or [])
        if config.stop_strings is not None:
            criteria.append(StopStringCriteria(kwargs["tokenizer"], config.stop_strings))
        ends = RowEnds(criteria, config.eos_token_id, decisions)
        kwargs = {**kwargs, "stopping_criteria": StoppingCriteriaList([ends])}
    finite = FiniteLogits()
    kwargs = {**kwargs, "logits_processor": LogitsProcessorList([finite, *(kwargs.get("logits_processor") or [])])}
    cache: SkipCache | StaticCache
    compiled = None
    live = LiveRows(decisions) if leaves_out else None
    cross = None if parts.encoder is None else CrossAttention(parts.num_layers)
    if compilation is None:
        prefill = None
        if not (seen_from_outside or parts.recurrent or parts.shares or parts.encoder):
            prefill = prefill_to_share(model, {**kwargs, "input_ids": input_ids}, rows, max_steps)
        once = parts.proven and not seen_from_outside
        cache = SkipCache(parts, decisions, once=once, prefill=prefill, live=live, cross=cross)
        steps = _uncompiled_steps(parts, cache, decisions, max_steps)
    else:
        check_compilation(parts, decisions, config)
        compiled = CompiledDecode(parts, decisions, compilation, rows, prompt_length)
        cache, steps = compiled.cache, compiled.steps()
    readings = cache.readings_s
    readings.append(now_s(model.device))
    encoder_s: list[float] = []
    try:
        with (
            steps,
            encoder_timed(parts, encoder_s),
            finished_sources_noted(model, decisions, config.num_beams) if searches and live else nullcontext(),
        ):
            both = cache if cross is None else EncoderDecoderPair(parts, cache, cross)
            raw = type(model).generate(model, input_ids, generation_config, **{parts.cache_argument: both}, **kwargs)
    except RuntimeError as error:  # sampling from probabilities that are not finite
        if "probability tensor" in str(error):
            finite.check(run.strategy, len(input_ids))
        raise
    readings.append(now_s(model.device))
    warmup = None if compiled is None else compiled.take_warmup()

    beams = getattr(raw, "beam_indices", None)
    new_tokens = raw.sequences[:, prompt_length:].cpu()
    if beams is None:
        real_tokens = real_tokens_of(new_tokens, config.eos_token_id) if ends is None else ends.real_tokens()
    else:
        beams = beams.cpu().long()
        real_tokens = (beams >= 0).sum(dim=1)
    finite.check(run.strategy, len(input_ids), real_tokens if beams is None else None)
    trace = trace_along(
        cache.executed,
        real_tokens,
        parts.num_layers,
        prompt_length,
        beam_rows=None if beams is None else beams[:, 1:].clamp(min=0),
        batch_rows=None if beams is None else rows,
        live_rows=live.counts if live else None,
        late=(cache.late_tokens, cache.late_passes),
        probes=decisions.probed,
        prompt=cache.prompt_executed,
        prompt_counts=(cache.prompt_tokens, cache.prompt_keys, cache.prompt_late_tokens, cache.prompt_late_passes),
        cached_numbers=[
            cache.cached_numbers[index if donor is None else donor] for index, donor in enumerate(parts.donors)
        ],
        windows=[0 if without else window for window, without in zip(parts.windows, parts.without_keys, strict=True)],
        source=None if cross is None else cross.counts(input_ids),
    )
    run.output = DecodeOutput(
        sequences=raw.sequences,
        sequences_scores=getattr(raw, "sequences_scores", None),
        scores=raw.scores,
        trace=trace,
        timing=Timing(
            prompt_s=readings[1] - readings[0] + cache.taken_over_s,
            decode_s=readings[-1] - readings[1] - (0.0 if warmup is None else warmup.seconds),
            decode_passes=len(cache.executed),
            taken_over_s=cache.taken_over_s,
            encoder_s=sum(encoder_s),
        ),
        cache_bytes=cache.peak_bytes,
        warmup=warmup,
    )
    if run.on_decode is not None:
        run.on_decode(run.output)
    return raw


@contextmanager
def _uncompiled_steps(parts: DecoderParts, cache: SkipCache, decisions: Decisions, max_steps: int) -> Iterator[None]:
    with (
        every_pass_recorded(parts, cache),
        packed_weights(parts, max_steps),
        settled_logits(parts, decisions),
        _prompt_mask_noted(parts, cache),
    ):
        yield
    cache.check_beams()


@contextmanager
def _prompt_mask_noted(parts: DecoderParts, cache: SkipCache) -> Iterator[None]:
    """Tell the cache which tokens of the prompt are padding, as transformers has found them."""

    def note(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        handle.remove()
        cache.prompt_mask = kwargs.get("attention_mask" if parts.encoder is None else "decoder_attention_mask")

    handle = parts.model.register_forward_pre_hook(note, with_kwargs=True)  # multimodal ones give the decoder others
    try:
        yield
    finally:
        handle.remove()
