"""TensorBoard's event files of an interrupted run, cut back to the moment of its checkpoint.

The resumed run logs again what the interrupted run logged after the checkpoint. Without the cut, each of these points
would be there twice, in two TensorBoard runs.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, TensorBoardLogger


def events_on_disk(loggers: Iterable[Logger]) -> list[dict[str, Any]]:
    """Flush the event files to the disk and note their sizes, for a checkpoint.

    Args:
        loggers: Of the Trainer. Only TensorBoard loggers are looked at.

    Returns:
        What `continue_events` takes. For each TensorBoard logger, in order, it has the version and the size in bytes
        of each event file by name.
    """
    found = []
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.flush()
            sizes = {}
            for file in sorted(Path(logger.log_dir).glob("events.out.tfevents.*")):
                with file.open("rb") as events:
                    os.fsync(events.fileno())
                sizes[file.name] = file.stat().st_size
            found.append({"version": logger.version, "sizes": sizes})
    return found


def continue_events(loggers: Iterable[Logger], states: Iterable[dict[str, Any]], writes: bool) -> None:
    """Set each logger to the folder of the interrupted run, and cut off what that run logged after its checkpoint.

    Args:
        loggers: Of the Trainer, before they have opened a file.
        states: What `events_on_disk` returned. A state whose files are missing, as in another output folder, is left
            out.
        writes: Whether this process cuts the files. The other processes only take the folder.
    """
    own = [logger for logger in loggers if isinstance(logger, TensorBoardLogger)]
    for logger, state in zip(own, states, strict=False):
        folder = Path(logger.root_dir)
        version = state["version"]
        folder /= version if isinstance(version, str) else f"version_{version}"
        if not state["sizes"] or not all((folder / name).is_file() for name in state["sizes"]):
            continue
        logger._version = version  # Lightning cannot set the version of a logger that exists
        if writes:
            for file in folder.glob("events.out.tfevents.*"):
                size = state["sizes"].get(file.name)
                if size is None:
                    file.unlink()
                elif file.stat().st_size > size:
                    os.truncate(file, size)
