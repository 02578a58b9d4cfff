"""Checkpoint files. A failed write keeps the file before it; reading accepts weights and plain values only."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO

from hsdlab.errors import RunError
from hsdlab.modules.finite import tensors_in
from hsdlab.modules.weight_files import errors_of_the_system
from hsdlab.records.files import whole_file

_ALWAYS_THERE = ("state_dict", "global_step", "epoch", "loops", "pytorch-lightning_version")


class CheckpointFiles(CheckpointIO):
    """How a Trainer writes and reads checkpoints: `trainer.strategy.checkpoint_io = CheckpointFiles()`.

    Lightning's own plugin writes into the temporary folder and moves the file from there. Across file systems the move
    is a copy. A kill or a full disk can cut the copy short when the previous checkpoint is already gone.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint.

        Args:
            checkpoint: Nested dictionaries and sequences of tensors and plain values.
            path: The file. An existing checkpoint is replaced once the new one is complete.
            storage_options: Ignored; Lightning's interface has it.

        Raises:
            RunError: The disk is full, or the file cannot be written. The previous checkpoint is kept.
        """
        with (
            whole_file(Path(path), tensor_bytes(checkpoint)) as unfinished,
            unfinished.open("wb") as file,
            errors_of_the_system(),
        ):
            torch.save(checkpoint, file)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint by `read_checkpoint`.

        Args:
            path: The file.
            map_location: Device of its tensors. None stands for the CPU.
            weights_only: Ignored: reading never runs code of a checkpoint.

        Returns:
            The checkpoint.

        Raises:
            RunError: See `read_checkpoint`.
        """
        return read_checkpoint(Path(path), map_location)

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a checkpoint, if there is one."""
        Path(path).unlink(missing_ok=True)


def read_checkpoint(path: Path, map_location: Any = None, mmap: bool = False) -> dict[str, Any]:
    """Read a checkpoint of a Trainer.

    Args:
        path: The last.ckpt or best.ckpt of a run.
        map_location: Device of its tensors, as in `torch.load`. None stands for the CPU.
        mmap: Whether tensors stay on the disk until they are used.

    Returns:
        Lightning's checkpoint dictionary, with state_dict, global_step, epoch, loops, callbacks and more.

    Raises:
        RunError: The file is missing, empty, truncated or no checkpoint of a Trainer, or it holds something other than
            weights and plain values.
    """
    if not path.is_file():
        raise RunError(f"There is no checkpoint {path}: give the file that train.py wrote, or start over without it.")
    if not path.stat().st_size:
        raise RunError(f"The checkpoint {path} is empty: resume from another one, or start over without it.")
    try:
        checkpoint = torch.load(path, map_location=map_location or "cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # zip, pickle and torch raise errors of many types
        what = "cannot be read (truncated, or not a checkpoint)"
        if "weights_only" in str(error):  # torch advises to turn it off, which would run the file's code
            what = "holds more than weights and plain values, and hsdlab runs no code of a checkpoint"
        raise RunError(f"The checkpoint {path} {what}: resume from another one, or start over without it.") from error
    lacking = [name for name in _ALWAYS_THERE if not isinstance(checkpoint, Mapping) or name not in checkpoint]
    if lacking:
        raise RunError(
            f"{path} is no checkpoint of train.py: it lacks {', '.join(lacking)}. Give the last.ckpt or best.ckpt of a "
            "run; for the weights of an exported model give --model.name."
        )
    return dict(checkpoint)


def tensor_bytes(*values: Any) -> int:
    """Add up the memory of all tensors in some values.

    Args:
        *values: Tensors, or nested dictionaries and sequences of them. Other values count nothing.

    Returns:
        Size in bytes. Memory that several tensors share counts once.
    """
    storages = (tensor.untyped_storage() for tensor in tensors_in(values))
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
