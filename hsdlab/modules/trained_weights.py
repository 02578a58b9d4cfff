"""What a checkpoint must hold to be restored: every trained weight of this model, all numbers finite."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hsdlab.errors import RunError

_MOST_NAMED = 3


def check_weights(weights: Mapping[str, Any], module: nn.Module, names: Iterable[str]) -> None:
    """Refuse weights that do not fit a module. Loading is not strict, since checkpoints lack the base model.

    Args:
        weights: The state_dict of a checkpoint.
        module: The module that will load them.
        names: Names of exactly the weights that the checkpoint has to hold.

    Raises:
        RunError: A weight is missing, has another shape or is not finite, or the checkpoint holds a further one.
    """
    own, needed = module.state_dict(), set(names)
    missing, foreign = needed - weights.keys(), weights.keys() - needed
    if missing or foreign:
        kind, found = ("lacks", missing) if missing else ("holds", foreign)
        raise RunError(
            f"The checkpoint does not fit this run: it {kind} {len(found)} weights"
            f"{'' if missing else ' that this model does not train'}, among them {_some(found)}. Give the checkpoint "
            "of this model, or start over without --ckpt_path."
        )
    for name in sorted(needed):
        value = weights[name]
        if not isinstance(value, Tensor) or value.shape != own[name].shape:
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise RunError(
                f"The checkpoint does not fit this run: {name} is {shape}, expected {tuple(own[name].shape)}. Give the "
                "checkpoint of this model, or start over without --ckpt_path."
            )
        if not torch.isfinite(value).all():
            raise RunError(
                f"The checkpoint cannot be used: {name} holds numbers that are not finite. Resume from an earlier one, "
                "or start over without --ckpt_path."
            )


def check_optimizer(checkpoint: Mapping[str, Any]) -> None:
    """Refuse a checkpoint from which training cannot resume.

    Args:
        checkpoint: Of `read_checkpoint`.

    Raises:
        RunError: It holds no state of the optimizer, or one that is not finite.
    """
    if not checkpoint.get("optimizer_states") or "lr_schedulers" not in checkpoint:
        raise RunError(
            "The checkpoint holds no state of the optimizer: training cannot resume from it. Give the last.ckpt of a "
            "run, or start over without --ckpt_path."
        )
    for optimizer in checkpoint["optimizer_states"]:
        for state in optimizer["state"].values():
            for name, value in state.items():
                if isinstance(value, Tensor) and not torch.isfinite(value).all():
                    raise RunError(
                        f"The checkpoint cannot be used: {name} of the optimizer's state holds numbers that are not "
                        "finite. Resume from an earlier one, or start over without --ckpt_path."
                    )


def check_same(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse to resume with other settings, another model or other data.

    Args:
        before: Values by name, of the checkpoint.
        now: Values by name, of this run. Names that only `before` has are not compared.

    Raises:
        RunError: A value differs; the message names each difference.
    """
    differences = [
        f"{name}: {before.get(name)!r} in the checkpoint, {value!r} in this run"
        for name, value in now.items()
        if before.get(name) != value
    ]
    if differences:
        raise RunError(f"The checkpoint does not fit this run. {'; '.join(differences)}.")


def _some(names: Iterable[str]) -> str:
    ordered = sorted(names)
    return ", ".join(ordered[:_MOST_NAMED]) + (", …" if len(ordered) > _MOST_NAMED else "")
