"""Read a model's configuration, weights and tokenizer, and refuse incomplete or damaged ones with a message of ours."""

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    GenerationConfig,
    GgufConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from hsdlab.errors import UserError
from hsdlab.models.quantization import method_of
from hsdlab.reasons import reason
from hsdlab.stored import plain_tensors

NO_CODE = {"trust_remote_code": False}
"""Without this option, transformers asks at the terminal whether to run a repository's code."""

_AGAIN = "Copy, download or export the model again"


def load_config(name: str, source: str, options: dict[str, Any]) -> PreTrainedConfig:
    """Load a model's configuration.

    Args:
        name: As the user wrote it, for messages.
        source: The folder or hub id.
        options: Further keyword arguments of ``from_pretrained``, such as "gguf_file".

    Returns:
        The configuration, of the class that its model_type has in transformers.

    Raises:
        UserError: It cannot be read, is of a type that transformers does not know, or needs code of its own.
        OSError: The hub does not provide it.
    """
    try:
        return AutoConfig.from_pretrained(source, **options)
    except OSError as error:
        if "JSON" not in str(error) and "gguf" not in str(error).lower():
            raise
        raise UserError(f"{name}: config.json is no JSON text: {reason(error)}. {_AGAIN}") from error
    except Exception as error:  # transformers, gguf and huggingface_hub raise errors of any class
        text = str(error)
        if "trust_remote_code" in text:
            raise UserError(
                f"{name} needs custom code of its own to be loaded, and hsdlab runs no code of a model repository; "
                "take a model whose architecture is part of transformers"
            ) from error
        if "gguf_file" in options:
            raise UserError(f"{name} cannot be read as a GGUF file: {reason(error)}. {_AGAIN}") from error
        if "does not recognize this architecture" in text or "Unrecognized model" in text:
            raise UserError(
                f"{name}: its config.json names a model_type that this version of transformers does not know, or none: "
                f"{reason(error)}. hsdlab decodes decoder-only language models (GPT-2, OPT, Llama, ...) and "
                "encoder-decoders (T5, BART, Marian, ...)"
            ) from error
        raise UserError(f"{name}: its config.json does not describe a model: {reason(error)}. {_AGAIN}") from error


def load_weights(
    name: str, source: str, dtype: str, options: dict[str, Any], encoder_decoder: bool = False
) -> PreTrainedModel:
    """Load a model, and check its weights.

    Args:
        name: As the user wrote it, for messages.
        source: The folder or hub id.
        dtype: Of the weights, as `load_model` takes it; a GGUF file is dequantised to it.
        options: Further keyword arguments of ``from_pretrained``, such as "gguf_file".
        encoder_decoder: What the configuration says; by default the model is decoder-only.

    Returns:
        The model on the CPU, or where "device_map" places it, with all its weights present. Those that are loaded are
        finite.

    Raises:
        UserError: Weights are missing, damaged, of other sizes, or not finite.
        OSError: The hub does not provide them.
    """
    if "gguf_file" in options:  # plain layers: packed ones can be neither merged with an adapter nor saved
        options = options | {"quantization_config": GgufConfig(dequantize=True)}
    try:
        auto = AutoModelForSeq2SeqLM if encoder_decoder else AutoModelForCausalLM
        model, report = auto.from_pretrained(source, dtype=dtype, output_loading_info=True, **options)
    except Exception as error:  # safetensors, pickle, torch, gguf and transformers raise errors of any class
        if isinstance(error, OSError) and options.get("local_files_only") is not None:  # of the hub
            raise
        if isinstance(error, ImportError):
            raise _lacks_package(name, error) from error
        if "device_map" in options:
            raise UserError(f"{name} cannot be placed by device_map: {reason(error)}") from error
        if "quantization_config" in options and "gguf_file" not in options:
            raise UserError(f"{name} cannot be quantised: {reason(error)}") from error
        if method := _quantised_as(source, options):
            raise UserError(
                f"{name} has quantised weights ({method}), which cannot be loaded on this machine: {reason(error)}"
            ) from error
        raise UserError(f"{name}: {_why_unreadable(error)}: {reason(error)}. {_AGAIN}") from error
    if report["missing_keys"]:  # transformers would use random weights in their place
        raise UserError(f"{name} lacks weights for {', '.join(sorted(report['missing_keys']))}")
    for weight_name, weight in model.named_parameters():
        plain = [each for each in plain_tensors(weight) if each.is_floating_point() and not each.is_meta]
        if not all(torch.isfinite(each).all() for each in plain):
            raise UserError(f"{name}: {weight_name} holds numbers that are not finite. {_AGAIN}")
    return model


def read_generation_config(folder: Path) -> GenerationConfig | None:
    """Read the generation config in a folder. transformers itself would silently ignore a damaged one.

    Args:
        folder: Of a model or an adapter.

    Returns:
        The generation config; None where there is no generation_config.json.

    Raises:
        UserError: It cannot be read.
    """
    file = folder / "generation_config.json"
    if not file.is_file():
        return None
    try:
        return GenerationConfig.from_pretrained(str(folder))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{file} cannot be read: {reason(error)}. Copy it again, or remove it") from error


def _lacks_package(name: str, error: ImportError) -> UserError:
    said = " ".join(str(error).split())[:200]
    return UserError(
        f"{name}: a Python package that the model needs is missing ({said}). Install it, or choose a model that does "
        "not need it"
    )


def _quantised_as(source: str, options: dict[str, Any]) -> str | None:
    """Look up how the weights of a checkpoint that could not be loaded are quantised; None if they are not."""
    kept = {key: value for key, value in options.items() if key in (*NO_CODE, "revision", "local_files_only")}
    try:
        return method_of(AutoConfig.from_pretrained(source, **kept))
    except Exception:  # the first error says more
        return None


def _why_unreadable(error: Exception) -> str:
    text = str(error)
    if "mismatch" in text or "shape" in text:
        return "the sizes of its weights are not those of its config.json"
    if "weights_only" in text or "Unpickling" in type(error).__name__ or "pickle" in text.lower():
        return (
            "its weights are a PyTorch file that holds more than weights, or none, and hsdlab runs no code of a model; "
            "convert it to safetensors where it comes from"
        )
    return "its weights cannot be read (truncated, empty or garbage?)"


def load_tokenizer(name: str, source: str, options: dict[str, Any]) -> PreTrainedTokenizerBase:
    """Load a tokenizer that pads on the left, unless the options say otherwise.

    Args:
        name: As the user wrote it, for messages.
        source: The folder or hub id.
        options: Further keyword arguments of ``from_pretrained``, such as "gguf_file" or "padding_side".

    Returns:
        The tokenizer. Without a padding token of its own, it pads with its end-of-sequence token.

    Raises:
        FileNotFoundError: There is none.
        UserError: It cannot be read.
        OSError: The hub does not provide it.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **{"padding_side": "left", **options})
    except Exception as error:  # tokenizers and transformers raise errors of any class
        if isinstance(error, OSError) and options.get("local_files_only") is not None:  # of the hub
            raise
        if isinstance(error, ImportError):
            raise _lacks_package(name, error) from error
        if "trust_remote_code" in str(error):
            raise UserError(
                f"{name}: its tokenizer needs custom code of its own, and hsdlab runs no code of a model repository; "
                "take a model whose tokenizer is part of transformers"
            ) from error
        raise UserError(
            f"{name}: its tokenizer cannot be read: {reason(error)}. Expected a whole tokenizer.json and "
            "tokenizer_config.json beside the weights; copy them again from where the model comes from"
        ) from error
    if len(tokenizer) <= len(tokenizer.all_special_ids):  # what transformers returns for a missing vocabulary
        raise FileNotFoundError(f"{name} has no tokenizer: expected a tokenizer.json beside the weights")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def check_tokenizer_fits(name: str, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> None:
    """Refuse a tokenizer with tokens for which the model has no embedding.

    Tokens that were added to the vocabulary may lie beyond the embeddings: Gemma 3's text models have one for images.

    Args:
        name: As the user wrote it, for messages.
        tokenizer: Its vocabulary and its special tokens for begin, end and padding are checked.
        model: Its input embeddings have one row per token.

    Raises:
        UserError: The largest token id has no row; the message has both numbers.
    """
    rows = model.get_input_embeddings().weight.shape[0]
    special = [token for token in (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) if token]
    largest = max(tokenizer.vocab_size - 1, *special, 0)
    if largest >= rows:
        raise UserError(
            f"{name}: its tokenizer has token ids up to {largest}, but the model has {rows} embeddings: they do not "
            "belong together. Copy the tokenizer's files again from where the model comes from, or resize the model "
            "(model.resize_token_embeddings) and save both"
        )
