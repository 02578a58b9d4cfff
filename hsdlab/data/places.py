"""Where prepared data sets are: `data/<name>` is in the folder that $HSDLAB_DATA names, or else in ./data."""

import os
from collections.abc import Sequence
from pathlib import Path

from hsdlab.data.files import split_files

VARIABLE = "HSDLAB_DATA"
DEFAULT = Path("data")


def data_root() -> Path:
    """Find the folder of all prepared data sets.

    Returns:
        $HSDLAB_DATA, or else ./data. It need not exist.
    """
    return Path(os.environ[VARIABLE]).expanduser() if os.environ.get(VARIABLE) else DEFAULT


def resolved_folder(folder: str) -> Path:
    """Find a folder of data.

    Args:
        folder: As an option or a config gives it. `data/<name>` is looked for in $HSDLAB_DATA first, if that is set,
            and then in the current folder.

    Returns:
        The folder, which need not exist. Any other path than `data/<name>` stays as it is.
    """
    path = Path(folder)
    if path.parts[:1] != DEFAULT.parts or data_root() == DEFAULT:
        return path
    elsewhere = data_root().joinpath(*path.parts[1:])
    return path if path.exists() and not elsewhere.exists() else elsewhere


def files_of_split(folder: str, split: str, suffixes: Sequence[str]) -> list[Path]:
    """Find the files of a split, as `split_files` does, in a folder that an option or a config names.

    Args:
        folder: See `resolved_folder`.
        split: How the names of the files begin.
        suffixes: How they may end, ".jsonl" for example; .gz may follow.

    Returns:
        One file, or the parts of one in order.

    Raises:
        FileNotFoundError: The folder or the file is missing; for `data/<name>` the message says how to get it.
        UserError: As `split_files`.
    """
    try:
        return split_files(resolved_folder(folder), split, suffixes)
    except FileNotFoundError as error:
        parts = Path(folder).parts
        if len(parts) != 2 or parts[0] != str(DEFAULT):
            raise
        raise FileNotFoundError(
            f"{error}. If {parts[1]} is one of the papers' data sets, `hsdlab data prepare {parts[1]}` writes it. If "
            f"it lies elsewhere, set ${VARIABLE} to the folder that holds {parts[1]}, or give --data.folder"
        ) from error
