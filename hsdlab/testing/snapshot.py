"""What a model looks like, to see whether it is left as it was found."""

from typing import Any

import torch
from transformers import PreTrainedModel

from hsdlab.testing.tiny import prompts


def snapshot(model: PreTrainedModel) -> dict[str, Any]:
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
