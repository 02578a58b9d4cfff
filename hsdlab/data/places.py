"""Where prepared data sets are: `data/<name>` is in the folder that $HSDLAB_DATA names, or else in ./data."""

import os
from pathlib import Path

VARIABLE = "HSDLAB_DATA"
DEFAULT = Path("data")


def data_root() -> Path:
    """Return the folder of all prepared data sets: $HSDLAB_DATA, or else ./data."""
    return Path(os.environ[VARIABLE]).expanduser() if os.environ.get(VARIABLE) else DEFAULT


def resolved_folder(folder: str) -> Path:
    """Return where a folder of data is.

    Args:
        folder: As an option or a config gives it. `data/<name>` is looked for in $HSDLAB_DATA first, if that is set,
            and then in the current folder. Any other path stays as it is.
    """
    path = Path(folder)
    if path.parts[:1] != DEFAULT.parts or data_root() == DEFAULT:
        return path
    elsewhere = data_root().joinpath(*path.parts[1:])
    return path if path.exists() and not elsewhere.exists() else elsewhere
