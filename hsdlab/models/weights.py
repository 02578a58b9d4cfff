"""Read a model's weights and its tokenizer, and refuse what is not whole."""

from typing import Any

from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from hsdlab.errors import UserError


def load_weights(name: str, source: str, dtype: str, options: dict[str, Any]) -> PreTrainedModel:
    """Load a model.

    Args:
        name: As the user wrote it, for messages.
        source: The folder or hub id.
        dtype: Of the weights.
        options: More of ``from_pretrained``.

    Raises:
        UserError: Weights are missing.
    """
    if "gguf_file" in options:  # plain layers: packed ones can be neither merged with an adapter nor saved
        options = options | {"quantization_config": GgufConfig(dequantize=True)}
    model, report = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, output_loading_info=True, **options)
    if report["missing_keys"]:  # transformers would go on with random numbers in their place
        raise UserError(f"{name} lacks weights for {', '.join(sorted(report['missing_keys']))}")
    return model


def load_tokenizer(name: str, source: str, options: dict[str, Any]) -> PreTrainedTokenizerBase:
    """Load a tokenizer that pads on the left; the arguments are those of `load_weights`.

    Raises:
        FileNotFoundError: There is none.
    """
    tokenizer = AutoTokenizer.from_pretrained(source, padding_side="left", **options)
    if len(tokenizer) <= len(tokenizer.all_special_ids):  # what transformers makes of a missing vocabulary
        raise FileNotFoundError(f"{name} has no tokenizer: expected a tokenizer.json beside the weights")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer
