"""Refuses a numerical precision that the device does not have."""

import torch
from lightning.pytorch import Trainer

from hsdlab.errors import UserError


def check_precision(trainer: Trainer, precision: str | int | None) -> None:
    """Refuse a precision that the device does not have, where Lightning would take or simulate another one.

    Args:
        trainer: Knows the device.
        precision: As --trainer.precision takes it, such as "bf16-mixed"; None for full precision.

    Raises:
        UserError: The message names the precisions that the device has.
    """
    device = trainer.strategy.root_device.type
    if device == "cpu" and str(precision) in ("16", "16-mixed"):
        raise UserError(
            f"--trainer.precision={precision} is not available on the CPU: give bf16-mixed, or 32-true for full "
            "precision."
        )
    wants_bfloat16 = str(precision).startswith("bf16")
    if device == "cuda" and wants_bfloat16 and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise UserError(
            f"--trainer.precision={precision} is not available on {torch.cuda.get_device_name()}: give 16-mixed, or "
            "32-true for full precision."
        )
