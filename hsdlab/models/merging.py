"""Checks, at export and at load, that a merged model is the model with its adapter beside it, on a few tokens.

peft merges a LoRA on the head of a model with tied embeddings into the embeddings too, since they are one matrix. The
merged model then differs, by several nats. The check finds any such difference, whatever its cause.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hsdlab.errors import UserError

TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-3, torch.float16: 6e-2, torch.bfloat16: 2e-1}
"""Largest norm of the logits' difference, as a share of the logits' norm. Rounding the merged weights causes 0.09 in
bfloat16, 0.018 in float16 (SmolLM2-135M with its skip-aware E2E adapter) and 4e-5 in float32; a LoRA on a tied head
causes 0.26."""
_TIED = 0.1  # share of the tolerance that remains where a cause of a difference is known


def few_logits(model: nn.Module) -> Tensor:
    """Compute the logits of a few tokens from all over the vocabulary, including its last ones.

    Args:
        model: In eval mode, merged or with an adapter beside it.

    Returns:
        Tensor [2, 8, vocabulary], in the model's dtype and on its device.
    """
    base: Any = model
    device = next(model.parameters()).device
    rows = base.get_input_embeddings().weight.shape[0]
    tokens = (torch.arange(16) * 7919 + rows - 8).remainder(rows)
    tokens[:4] = torch.arange(rows - 4, rows).clamp(min=0)
    text = tokens.reshape(2, 8).to(device)
    target = {"decoder_input_ids": text} if base.config.is_encoder_decoder else {}
    with torch.no_grad():
        return base(input_ids=text, **target, use_cache=False).logits


def check_same_logits(before: Tensor, after: Tensor, what: str, tied: list[str]) -> None:
    """Refuse a merged model that differs from the model with the adapter beside it.

    Args:
        before: Logits with the adapter beside the model, [..., vocabulary]; their dtype sets the tolerance.
        after: Logits of the merged model, of the same shape.
        what: The adapter, for the message.
        tied: Targets of the adapter whose weights other parts of the model share. If there are any, the tolerance is 10
            times smaller.

    Raises:
        UserError: They differ beyond the tolerance, or are not finite.
    """
    if not torch.isfinite(before).all():
        raise UserError(f"{what} gives logits that are not finite: its weights, or the base model's, are damaged.")
    old, new = before.double(), after.double()
    share = ((new - old).norm() / old.norm()).item() if new.shape == old.shape else float("inf")
    if share <= TOLERANCES[before.dtype] * (_TIED if tied else 1):
        return
    largest, difference = old.abs().max().item(), (new - old).abs().max().item() if new.shape == old.shape else share
    why = f" It changes {', '.join(tied)}, which other parts of the model use too." if tied else ""
    raise UserError(
        f"{what} cannot be merged: the merged model's logits differ from those of the model with the adapter beside it "
        f"by {difference:.3g}, where the largest is {largest:.3g} ({before.dtype}).{why} {CURE}"
    )


CURE = (
    "Train without these targets: leave the head and the embeddings out of lora.target_modules, or name the head in "
    "lora.modules_to_save, which gives it a matrix of its own."
)


def tied_names(adapted: nn.Module) -> list[str]:
    """Find LoRA targets whose weight another module shares, as the head does with tied embeddings.

    Args:
        adapted: A peft model with LoRA layers.

    Returns:
        The targets' names in the base model, such as "lm_head".
    """
    from peft.tuners.lora import LoraLayer

    owners: dict[int, set[int]] = {}
    for module in adapted.modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(id(parameter), set()).add(id(module))
    found = []
    for name, module in adapted.named_modules():
        if isinstance(module, LoraLayer):
            weight = getattr(module.get_base_layer(), "weight", None)
            if len(owners.get(id(weight), ())) > 1:
                found.append(name.removeprefix("base_model.model."))
    return found


@contextmanager
def merged_for_a_while(adapted: Any) -> Iterator[None]:
    """Merge an adapter during the block; afterwards every weight is bit by bit as before.

    Args:
        adapted: A peft model. The weights of its targets are copied to the CPU's memory meanwhile.

    Yields:
        Nothing.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for module in adapted.modules() if isinstance(module, BaseTunerLayer)]
    kept = {
        id(parameter): (parameter, parameter.detach().to("cpu", copy=True))
        for layer in layers
        if isinstance(base := layer.get_base_layer(), nn.Module)
        for parameter in base.parameters()
    }
    adapted.merge_adapter()
    try:
        yield
    finally:
        adapted.unmerge_adapter()
        with torch.no_grad():
            for parameter, values in kept.values():
                parameter.copy_(values)


def check_merges(adapted: Any, what: str) -> None:
    """Check that a model in training would be the same model when merged. The model is left as it was.

    Args:
        adapted: A peft model, in train or eval mode.
        what: The adapter, for the message.

    Raises:
        UserError: The merged model would differ.
    """
    was_training = adapted.training
    adapted.eval()
    try:
        before = few_logits(adapted)
        with merged_for_a_while(adapted):
            after = few_logits(adapted)
    finally:
        adapted.train(was_training)
    check_same_logits(before, after, what, tied_names(adapted))
