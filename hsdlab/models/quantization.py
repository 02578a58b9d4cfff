"""Quantised weights: rounded as a model is loaded, or as its checkpoint stores them.

int8 is one scale for each output and needs torchao; nf4 is the 4-bit format of QLoRA (arXiv 2305.14314) and needs
bitsandbytes. Both leave the embeddings and the head as they are, and compute in the dtype of the model.
"""

from importlib import import_module
from typing import Any, Literal, get_args

import torch
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedConfig, PreTrainedModel, TorchAoConfig

from hsdlab.errors import UserError
from hsdlab.extras import of_extra
from hsdlab.stored import quantised_linears

Quantization = Literal["int8", "nf4"]


def loading_options(name: str, quantization: str | None, dtype: str, config: PreTrainedConfig) -> dict[str, Any]:
    """Make the option of ``from_pretrained`` that quantises the weights of a model's layers.

    Args:
        name: The model, as the user wrote it, for messages.
        quantization: As `load_model` takes it; None leaves the weights as they are stored.
        dtype: In which the model computes, as `load_model` takes it.
        config: The model's.

    Returns:
        "quantization_config", or nothing.

    Raises:
        UserError: An unknown quantization, float64, or a model whose weights are quantised already.
        RunError: The package that quantises is not installed; the message names the extra.
    """
    if quantization is None:
        return {}
    if quantization not in get_args(Quantization):
        known = " or ".join(get_args(Quantization))
        raise UserError(f"quantization={quantization!r}: expected {known}, or leave it out")
    if method := method_of(config):
        raise UserError(
            f"quantization={quantization}: the weights of {name} are quantised already ({method}); leave it out"
        )
    if dtype == "float64":
        raise UserError(f"quantization={quantization} has no float64: give dtype float32, bfloat16 or float16")
    if quantization == "int8":
        with of_extra("int8", "quantization=int8"):
            torchao = import_module("torchao")
        return {"quantization_config": TorchAoConfig(torchao.quantization.Int8WeightOnlyConfig(version=2))}
    with of_extra("nf4", "quantization=nf4"):
        import_module("bitsandbytes")
    computed = config.dtype if dtype == "auto" else getattr(torch, dtype)
    four_bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=computed)
    return {"quantization_config": four_bits}


def method_of(config: PreTrainedConfig) -> str | None:
    """Look up how the weights of a checkpoint are quantised.

    Args:
        config: The model's.

    Returns:
        transformers' name of the method, such as "gptq"; None if they are not quantised.
    """
    given: Any = getattr(config, "quantization_config", None)
    if given is None:
        return None
    method = given.get("quant_method") if isinstance(given, dict) else getattr(given, "quant_method", None)
    return str(getattr(method, "value", None) or method or "bitsandbytes")


def is_quantised(model: nn.Module) -> bool:
    """Say whether some linear layer of a model has quantised weights.

    Args:
        model: Any model.

    Returns:
        Whether it has. A GGUF file is dequantised as it is loaded.
    """
    return bool(quantised_linears(model))


def weights_dtype(model: PreTrainedModel) -> str:
    """Name the format of a model's weights.

    Args:
        model: A transformers model.

    Returns:
        The dtype, such as "float32". For quantised weights the method and the dtype of the others, such as
        "torchao int8, float32", "nf4, float32" or "gptq, float16".
    """
    dtype = str(model.dtype).removeprefix("torch.")
    if not is_quantised(model):
        return dtype
    method, options = method_of(model.config), getattr(model.config, "quantization_config", None)
    if method == "bitsandbytes":
        four_bits = getattr(options, "load_in_4bit", False)
        method = getattr(options, "bnb_4bit_quant_type", "4 bits") if four_bits else "LLM.int8"
    elif method == "torchao":
        method = f"torchao {type(getattr(options, 'quant_type', None)).__name__.removesuffix('Config')}"
        method = {"torchao Int8WeightOnly": "int8"}.get(method, method)
    return f"{method}, {dtype}"
