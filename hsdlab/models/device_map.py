"""Models that do not fit on the device that computes: layers wait on the CPU or the disk until they run.

accelerate loads the weights of a layer when it is called, so that a skipped layer is not loaded.
"""

from collections.abc import Mapping
from os import PathLike, fspath
from typing import Any

from torch import nn

from hsdlab.errors import UserError

DeviceMap = str | Mapping[str, str | int]


def placing_options(
    device_map: DeviceMap | None, device: str, adapted: bool, folder: str | PathLike[str] | None
) -> dict[str, Any]:
    """Make the options of ``from_pretrained`` that place the parts of a model.

    Args:
        device_map: As `load_model` takes it.
        device: As `load_model` takes it.
        adapted: Whether an adapter is to be merged into the weights.
        folder: For the weights of layers on the disk; None for none.

    Returns:
        "device_map" and "offload_folder", or nothing.

    Raises:
        UserError: Options that exclude each other.
    """
    if device_map is None:
        if folder is not None:
            raise UserError("offload_folder: no layer waits on the disk without device_map; leave it out")
        return {}
    if device != "auto":
        raise UserError(f"device={device!r} and device_map both say where the model goes; leave one out")
    if adapted:
        raise UserError(
            "device_map: an adapter cannot be merged into weights that wait elsewhere. Load the model with its adapter "
            "on the CPU once, write it (model.save_pretrained, tokenizer.save_pretrained), and load that folder"
        )
    options: dict[str, Any] = {"device_map": device_map if isinstance(device_map, str) else dict(device_map)}
    return options if folder is None else options | {"offload_folder": fspath(folder)}


def is_placed(model: nn.Module) -> bool:
    """Say whether parts of a model wait on another device than the one that computes, or on the disk.

    Args:
        model: Any model.

    Returns:
        Whether accelerate has placed them by a device_map.
    """
    return any(hasattr(module, "_hf_hook") for module in model.modules())


def check_movable(model: nn.Module, what: str) -> None:
    """Refuse a model that a Trainer could not move to its device.

    Args:
        model: Any model.
        what: What would be moved, as the subject of the message.

    Raises:
        UserError: Its parts were placed by a device_map.
    """
    if is_placed(model):
        raise UserError(
            f"{what}: the Trainer moves the whole model to one device, and a device_map has placed this one's parts. "
            "Decode it in Python (hsdlab.generate, hsdlab.replay), or load it without device_map"
        )
