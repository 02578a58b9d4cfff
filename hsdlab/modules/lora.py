"""LoRA: train a few small matrices beside the model's own (Hu et al. 2021, arXiv 2106.09685)."""

from dataclasses import dataclass
from typing import Literal

from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hsdlab.errors import UserError


@dataclass(frozen=True)
class LoRA:
    """How to train with LoRA.

    Attributes:
        rank: Of the added matrices; 16 as in the HSD paper (arXiv 2403.14919, section 4.1).
        alpha: The added product is scaled by alpha / rank; 32 as there.
        dropout: Share of its inputs that is dropped in training; 0 is peft's default.
        targets: Names of the layers that get them, such as [c_attn], or "all-linear": every linear layer but
            the head, which the HSD paper leaves open and QLoRA (arXiv 2305.14314) found needed to match full
            fine-tuning.

    Raises:
        UserError: A number out of its range.
    """

    rank: int = 16
    alpha: float = 32
    dropout: float = 0.0
    targets: list[str] | Literal["all-linear"] = "all-linear"

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise UserError(f"lora.rank={self.rank}: expected 1 or more.")
        if self.alpha <= 0:
            raise UserError(f"lora.alpha={self.alpha}: expected more than 0.")
        if not 0 <= self.dropout < 1:
            raise UserError(f"lora.dropout={self.dropout}: expected 0 or more, and less than 1.")


def add_lora(model: PreTrainedModel, lora: LoRA) -> PeftModel:
    """Freeze the model's weights and add those of LoRA, in place.

    Args:
        model: A transformers model.
        lora: How.

    Returns:
        A peft model around the model.

    Raises:
        UserError: A target names no layer of the model; the message lists what there is.
    """
    linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)}
    if lora.targets != "all-linear":
        for target in lora.targets:
            if not any(f".{name}".endswith(f".{target}") for name in linear):
                there = ", ".join(sorted({name.rpartition(".")[2] for name in linear}))
                raise UserError(
                    f"lora.targets: {target!r} matches no linear layer of {type(model).__name__}; it has {there}. "
                    '"all-linear" takes all but the head.'
                )
        if not lora.targets:
            raise UserError('lora.targets is empty: name layers, or give "all-linear".')
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.targets,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in linear.values()),  # GPT-2 keeps weights transposed
    )
    return get_peft_model(model, config)
