"""TensorBoard's event files of a run that was cut short: as they were when its checkpoint was written.

What the run logged after the checkpoint is logged again by the run that goes on: without this each of these points
would be there twice, in two TensorBoard runs.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, TensorBoardLogger


def events_on_disk(loggers: Iterable[Logger]) -> list[dict[str, Any]]:
    """Write all that was logged to the disk; return what `continue_events` goes on with, for a checkpoint."""
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
    """Have each logger go on in the folder of the run before; cut off what that run logged after its checkpoint.

    Args:
        loggers: Before they have opened anything.
        states: What `events_on_disk` returned. One whose files are not there, as in another output folder, is left out.
        writes: Whether this process cuts; the others only take the folder.
    """
    own = [logger for logger in loggers if isinstance(logger, TensorBoardLogger)]
    for logger, state in zip(own, states, strict=False):
        folder = Path(logger.root_dir)
        version = state["version"]
        folder /= version if isinstance(version, str) else f"version_{version}"
        if not state["sizes"] or not all((folder / name).is_file() for name in state["sizes"]):
            continue
        logger._version = version  # Lightning has no way to set it once the logger is made
        if writes:
            for file in folder.glob("events.out.tfevents.*"):
                size = state["sizes"].get(file.name)
                if size is None:
                    file.unlink()
                elif file.stat().st_size > size:
                    os.truncate(file, size)
