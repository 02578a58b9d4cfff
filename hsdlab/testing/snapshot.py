"""The state of a model, to find out whether decoding changed it."""

from typing import Any

import torch
from transformers import PreTrainedModel

from hsdlab.testing.tiny import prompts


def snapshot(model: PreTrainedModel) -> dict[str, Any]:
    """Record what decoding must not change: classes, attributes, hooks, configs and outputs.

    Args:
        model: A small model; it runs one forward pass.

    Returns:
        A dictionary that equals an earlier one of the same model if nothing has changed. Objects count as equal only if
        they are identical, so two models never give equal ones.
    """
    found: dict[str, Any] = {
        "config": model.config.to_dict(),
        "generation_config": model.generation_config.to_dict(),
    }
    for name, module in model.named_modules():
        found[name] = (type(module), {key: _frozen(value) for key, value in vars(module).items()})
    with torch.no_grad():
        ids = prompts(1)[0]
        others = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
        found["output"] = model(input_ids=ids, **others).logits.tolist()
    return found


def _frozen(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: id(item) for key, item in value.items()}
    return value if isinstance(value, bool | int | float | str | None) else id(value)
