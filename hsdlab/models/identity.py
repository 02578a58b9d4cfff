"""Hashes that tell models and tokenizers apart: a resumed run compares them with those of its start."""

import hashlib
import json
from typing import Any

import torch
import xxhash
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hsdlab.exits import layers_without_weights
from hsdlab.stored import plain_tensors

NOT_OF_THE_MODEL = ("_name_or_path", "name_or_path", "transformers_version", "dtype", "torch_dtype")
"""Entries of a model's config that say where it comes from and how it is loaded."""

OF_A_TOKENIZER = (
    *("chat_template", "padding_side", "truncation_side", "model_max_length", "clean_up_tokenization_spaces"),
    *("add_bos_token", "add_eos_token", "split_special_tokens", "legacy"),
)


def weights_hash(model: nn.Module, without: str | None = None) -> str:
    """Hash all numbers of a model's weights (XXH3, 128 bits).

    Args:
        model: Any module; names, dtypes and shapes of its tensors are hashed too.
        without: Leave out tensors whose names contain this text, such as "lora_" for the weights of the base model;
            None for all tensors.

    Returns:
        32 hex digits.
    """
    digest = xxhash.xxh3_128()
    for name, weight in model.state_dict().items():
        if without is None or without not in name:
            digest.update(f"{name} {weight.dtype} {tuple(weight.shape)} ".encode())
            for plain in plain_tensors(weight.detach()):
                numbers: Any = plain.cpu().contiguous().flatten().view(torch.uint8)
                digest.update(numbers.numpy())
    digest.update(layers_without_weights(model).encode())
    return digest.hexdigest()


def config_hash(model: PreTrainedModel) -> str:
    """Hash a model's configuration.

    Args:
        model: Name, dtype and version of transformers do not count.

    Returns:
        16 hex digits.
    """
    return _hash(_without_origin(model.config.to_dict()))


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash all that determines how a tokenizer converts between text and tokens, including its chat template.

    Args:
        tokenizer: Fast or slow; the two differ. Truncation and padding of the moment do not count.

    Returns:
        16 hex digits.
    """
    if tokenizer.is_fast:
        serialised = json.loads(tokenizer.backend_tokenizer.to_str())
        serialised = {name: part for name, part in serialised.items() if name not in ("truncation", "padding")}
    else:
        serialised = {"vocabulary": tokenizer.get_vocab()}  # the pieces of SentencePiece and their ids
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    added = {str(place): repr(token) for place, token in tokenizer.added_tokens_decoder.items()}
    settings = {name: str(getattr(tokenizer, name, None)) for name in OF_A_TOKENIZER}
    return _hash([type(tokenizer).__name__, serialised, special, added, settings])


def _without_origin(node: Any) -> Any:
    if isinstance(node, dict):
        return {name: _without_origin(item) for name, item in node.items() if name not in NOT_OF_THE_MODEL}
    return [_without_origin(item) for item in node] if isinstance(node, list | tuple) else node


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]
