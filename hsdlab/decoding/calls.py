"""What a call of ``generate`` asks for, and what is refused of it before anything is decoded."""

import copy
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from hsdlab.decoding.families import context_length, decoder_config
from hsdlab.errors import UserError

_REFUSED = {
    "assistant_model": "assisted decoding",
    "prompt_lookup_num_tokens": "assisted decoding (prompt lookup)",
    "assistant_early_exit": "assisted decoding (early exit)",
    "custom_generate": "a custom decoding loop",
    "prefill_chunk_size": "a prefill in chunks",
}


def merged_config(
    model: PreTrainedModel, generation_config: GenerationConfig | None, kwargs: dict[str, Any]
) -> GenerationConfig:
    """Merge all generation options of a call, with transformers' precedence.

    Args:
        model: Its own ``generation_config`` gives the options that the call leaves open.
        generation_config: The options object of the call, which is copied and not changed; None if there is none.
        kwargs: The keywords of the call. They win over ``generation_config``; None switches an option off.

    Returns:
        A new config. Its ``return_dict_in_generate`` is True unless ``kwargs`` has it. Its ``use_cache`` is False only
        where the call says so, and not where the model's own default does (MPT).

    Raises:
        UserError: ``generation_config`` is of another type, or a length or a number of beams or of sequences is not a
            whole number of at least 1.
    """
    if not isinstance(generation_config, GenerationConfig | None):
        raise UserError(f"generation_config={generation_config!r}: expected a transformers.GenerationConfig, or None.")
    _check_numbers(kwargs)
    options = {name: value for name, value in kwargs.items() if name not in ("input_ids", "attention_mask")}
    without_cache = False in (kwargs.get("use_cache"), getattr(generation_config, "use_cache", None))
    generation_config = copy.deepcopy(generation_config) or GenerationConfig()
    generation_config.update(**{**options, "return_dict_in_generate": True})
    merged = model._prepare_generation_config(generation_config)[0]
    merged.update(**options)  # None switches an option off
    merged.use_cache = not without_cache
    return merged


def _check_numbers(kwargs: dict[str, Any]) -> None:
    """Refuse lengths and numbers that are not whole or below 1, before transformers computes with them."""
    for name in ("max_new_tokens", "max_length", "num_beams", "num_return_sequences"):
        value = kwargs.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise UserError(f"{name} is {value!r}; expected a whole number, at least 1.")


def check_tokens(input_ids: Any, model: PreTrainedModel) -> None:
    """Refuse ids of tokens for which the model has no embedding. On a GPU they would end the process.

    Args:
        input_ids: Token ids of any shape, not empty. Reading them waits for their device.
        model: The rows of its input embeddings are the ids that exist.

    Raises:
        UserError: ``input_ids`` is not a tensor of whole numbers, or an id is outside of the embeddings.
    """
    if not isinstance(input_ids, Tensor) or input_ids.is_floating_point() or input_ids.dtype == torch.bool:
        got = input_ids.dtype if isinstance(input_ids, Tensor) else f"a {type(input_ids).__name__}"
        raise UserError(f"input_ids: got {got}; expected a LongTensor of token ids.")
    rows = model.get_input_embeddings().weight.shape[0]
    smallest, largest = (int(each) for each in input_ids.aminmax())
    if smallest < 0 or largest >= rows:
        raise UserError(
            f"input_ids: got ids from {smallest} to {largest}; this model has tokens 0 to {rows - 1}. Is the tokenizer "
            "the model's?"
        )


def check_call(config: GenerationConfig, input_ids: Any, kwargs: dict[str, Any], has_encoder: bool = False) -> None:
    """Refuse bad input and what cannot be combined with skipped layers.

    Args:
        config: The merged options of the call (:func:`merged_config`).
        input_ids: The prompts; expected to be [rows, prompt], not empty.
        kwargs: The other keywords of the call. ``attention_mask`` [rows, prompt], if it is among them, has to be 1 in
            its last column (left padding) where the decoder reads the prompts.
        has_encoder: Whether an encoder reads them.

    Raises:
        UserError: The message names the keyword of ``generate`` that is at fault.
    """
    for name, meaning in _REFUSED.items():
        if kwargs.get(name) is not None or getattr(config, name, None) is not None:
            raise UserError(f"{name}: {meaning} cannot be combined with skipped layers.")
    if kwargs.get("past_key_values") is not None:
        raise UserError("past_key_values: a pre-filled cache lacks what skipped layers need; give the whole prompt.")
    for name, meaning in (("inputs_embeds", "the prompt"), ("encoder_outputs", "the source")):
        if kwargs.get(name) is not None:
            raise UserError(f"{name}: give {meaning} as input_ids.")
    if config.guidance_scale not in (None, 1):
        raise UserError(
            f"guidance_scale={config.guidance_scale}: classifier-free guidance runs a second forward pass at full "
            "depth, which cannot be combined with skipped layers; leave it out."
        )
    if config.use_cache is False:
        raise UserError("use_cache=False: skipped layers are decoded on a key/value cache; leave it on.")
    if config.cache_implementation not in (None, "dynamic"):
        raise UserError(
            f"cache_implementation={config.cache_implementation!r}: skipped layers need the dynamic one; leave it out."
        )
    if not isinstance(input_ids, Tensor) or input_ids.dim() != 2 or input_ids.numel() == 0:
        got = tuple(input_ids.shape) if isinstance(input_ids, Tensor) else type(input_ids).__name__
        raise UserError(f"input_ids: got {got}; expected a LongTensor of shape (rows, prompt length), not empty.")
    if config.stop_strings is not None and kwargs.get("tokenizer") is None:
        raise UserError("stop_strings: give the tokenizer too, generate(…, tokenizer=tokenizer).")
    mask = kwargs.get("attention_mask")
    if mask is None:
        return
    if not isinstance(mask, Tensor):
        raise UserError(
            f"attention_mask: got a {type(mask).__name__}; expected a LongTensor of the shape of input_ids."
        )
    if tuple(mask.shape) != tuple(input_ids.shape):
        raise UserError(
            f"attention_mask: got shape {tuple(mask.shape)}; expected that of input_ids, {tuple(input_ids.shape)}."
        )
    if not has_encoder and bool((mask[:, -1] == 0).any()):
        raise UserError(
            "attention_mask: some sequences end in padding; decoding needs left padding "
            "(tokenizer.padding_side = 'left')."
        )


def decoder_prompt_length(model: PreTrainedModel, config: GenerationConfig, kwargs: dict[str, Any]) -> int:
    """Count the tokens from which the decoder of an encoder-decoder model begins.

    Args:
        model: Its config may name the start token.
        config: The merged options of the call.
        kwargs: The keywords of the call. transformers puts the start token before ``decoder_input_ids`` where no row
            begins with it.

    Returns:
        1, or the length of the given ids.

    Raises:
        UserError: No start token is known, or ``decoder_input_ids`` is not [rows, length] or has padding.
    """
    given, mask = kwargs.get("decoder_input_ids"), kwargs.get("decoder_attention_mask")
    start = config.bos_token_id if config.decoder_start_token_id is None else config.decoder_start_token_id
    if start is None:
        raise UserError(
            "decoder_start_token_id: neither the call nor the model's generation config names the token with which its "
            "decoder begins; give it."
        )
    if given is None:
        return 1
    if not isinstance(given, Tensor) or given.dim() != 2 or given.numel() == 0:
        raise UserError("decoder_input_ids: expected a LongTensor of shape (rows, length), not empty.")
    check_tokens(given, model)
    if mask is not None and bool((mask == 0).any()):
        raise UserError("decoder_attention_mask: padding is not supported; give prompts of one length to a batch.")
    starts = torch.as_tensor(start, device=given.device).flatten()
    return given.shape[1] + int(bool((given[:, 0] != starts).all()))


def max_new_tokens_of(
    model: PreTrainedModel,
    applied_default: int | None,
    generation_config: GenerationConfig | None,
    kwargs: dict[str, Any],
    prompt_length: int,
) -> int:
    """Find T, the most new tokens of a call. The first source that gives a length wins.

    Args:
        model: Its own ``generation_config`` is the last source.
        applied_default: ``max_new_tokens`` of :func:`~hsdlab.decoding.generate.applied`, the third source; None if it
            was not given.
        generation_config: The options object of the call, the second source; None if there is none.
        kwargs: The keywords of the call, the first source.
        prompt_length: Length of the (padded) prompt, tokens; taken off a ``max_length``.

    Returns:
        T in tokens, at least 1. Within one source ``max_new_tokens`` wins over ``max_length``.

    Raises:
        UserError: No source gives a length, or T is below 1.
    """
    sources: list[dict[str, Any]] = [
        kwargs,
        vars(generation_config) if generation_config else {},
        {"max_new_tokens": applied_default},
        vars(model.generation_config),
    ]
    for source in sources:
        if source.get("max_new_tokens") is not None:
            name, length = "max_new_tokens", source["max_new_tokens"]
            break
        if source.get("max_length") is not None:
            name, length = (
                f"max_length minus the prompt's {prompt_length} tokens",
                source["max_length"] - prompt_length,
            )
            break
    else:
        raise UserError("max_new_tokens: not given; the schedules need to know the most new tokens (T).")
    if length < 1:
        raise UserError(f"{name} is {length}; expected at least 1.")
    return length


def check_context(
    model: PreTrainedModel,
    prompt_length: int,
    max_new_tokens: int,
    attention_mask: Tensor | None = None,
    source_length: int = 0,
) -> None:
    """Refuse a prompt that, with its new tokens, exceeds the model's context.

    Args:
        model: Its config says how long the context is; a model whose config does not say so takes any length.
        prompt_length: Length of the (padded) prompt of the decoder, tokens.
        max_new_tokens: T.
        attention_mask: [rows, prompt], 1 for tokens and 0 for padding; None where there is no padding.
        source_length: What an encoder reads, tokens; 0 without one.

    Raises:
        UserError: Text or source exceed the context, or it grows beyond the original context of a model with longrope
            while it is decoded.
    """
    context = context_length(model)
    if context is not None and source_length > context:
        raise UserError(
            f"A source of {source_length} tokens exceeds this model's context of {context} tokens; shorten it."
        )
    if context is not None and prompt_length + max_new_tokens > context:
        raise UserError(
            f"A prompt of {prompt_length} tokens and max_new_tokens={max_new_tokens} exceed this model's context of "
            f"{context} tokens; shorten one of them."
        )
    check_rotation(model, prompt_length, max_new_tokens - 1)  # Phi-3 counts padding, others do not
    if attention_mask is not None:
        check_rotation(model, attention_mask, max_new_tokens - 1)


def check_rotation(model: PreTrainedModel, before: int | Tensor, new_tokens: int) -> None:
    """Refuse to run further tokens on keys that longrope rotates otherwise from there on.

    Args:
        model: Only a model with longrope is ever refused.
        before: Tokens whose keys are in the cache; or their mask [rows, length], whose longest row counts.
        new_tokens: Tokens that are to be run on them.

    Raises:
        UserError: The text grows beyond the original context.
    """
    switch = _longrope_switch(model)
    if switch is None:
        return
    length = before if isinstance(before, int) else int(before.sum(dim=1).max())
    if length <= switch < length + new_tokens:
        raise UserError(
            f"A prompt of {length} tokens and max_new_tokens={new_tokens + 1} pass {switch} tokens, the "
            "original context of this model, where its rotary embeddings (longrope) change for all tokens and its "
            "KV cache is no longer valid; decode fewer new tokens, or use a longer prompt."
        )


def _longrope_switch(model: PreTrainedModel) -> int | None:
    """Return the length in tokens beyond which longrope rotates all positions otherwise; None for other models."""
    config = decoder_config(model.config)
    rope = getattr(config, "rope_parameters", None) or {}
    by_layer_type = [each for each in rope.values() if isinstance(each, dict)]
    longrope = next((each for each in [rope, *by_layer_type] if each.get("rope_type") == "longrope"), None)
    if longrope is None:
        return None
    return longrope.get("original_max_position_embeddings") or getattr(config, "original_max_position_embeddings", None)
