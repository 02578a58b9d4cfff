"""Checkpoint files: written whole or not at all, read as weights and plain values only, refused in a sentence."""

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

    Lightning's own writes into the temporary folder and moves the file from there: from another file system that is a
    copy, which a kill or a full disk cuts short, after the checkpoint before it is gone.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint.

        Raises:
            RunError: There is no room, or it cannot be written; the one that was there is kept.
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
        """Read a checkpoint; nothing but weights and plain values, whatever `weights_only` says.

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
        path: Of the file.
        map_location: Where its tensors go; the CPU by default.
        mmap: Leave its tensors on the disk until they are used.

    Raises:
        RunError: There is none, it is empty, truncated, or holds something else than weights and plain values.
    """
    if not path.is_file():
        raise RunError(f"There is no checkpoint {path}: give the file that train.py wrote, or begin anew without it.")
    if not path.stat().st_size:
        raise RunError(f"The checkpoint {path} is empty: go on from another one, or begin anew without it.")
    try:
        checkpoint = torch.load(path, map_location=map_location or "cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # zip, pickle and torch raise what they like
        what = "cannot be read (truncated, or not a checkpoint)"
        if "weights_only" in str(error):  # torch advises to turn it off, which would run the file's code
            what = "holds more than weights and plain values, and hsdlab runs no code of a checkpoint"
        raise RunError(f"The checkpoint {path} {what}: go on from another one, or begin anew without it.") from error
    lacking = [name for name in _ALWAYS_THERE if not isinstance(checkpoint, Mapping) or name not in checkpoint]
    if lacking:
        raise RunError(
            f"{path} is no checkpoint of train.py: it lacks {', '.join(lacking)}. Give the last.ckpt or best.ckpt of a "
            "run; for the weights of an exported model give --model.name."
        )
    return dict(checkpoint)


def tensor_bytes(*values: Any) -> int:
    """Return the size of all tensors in nested dictionaries and sequences; memory that several share counts once."""
    storages = (tensor.untyped_storage() for tensor in tensors_in(values))
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
