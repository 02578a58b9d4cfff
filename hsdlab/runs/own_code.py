"""What a run is made with beside its model and data: classes of the user's own, and the files that options name."""

import hashlib
import inspect
import sysconfig
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import hsdlab
from hsdlab.records.identity import texts

INSTALLED = tuple(Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib"))


def own_code(objects: Iterable[object], options: Mapping[str, Any]) -> dict[str, str]:
    """Return a hash of each source file of the user's own classes, and of each file that an option names.

    A run that goes on with another one would mix two strategies, or two exit classifiers, under one name.

    Args:
        objects: Strategies, data modules and callbacks; classes of hsdlab or of installed packages are left out.
        options: Settings of the run, nested; folders and texts that are no file's path are left out.

    Returns:
        The class or path, and 16 hex digits.
    """
    found = {}
    for each in objects:
        for cls in type(each).__mro__:
            if (file := _own_file(cls)) is not None:
                found[f"{cls.__module__}.{cls.__qualname__}"] = _hash(file)
    for _, value in texts(options):
        path = Path(value).expanduser()
        if len(value) < 1000 and "\0" not in value and "\n" not in value and path.is_file():
            found[value] = _hash(path)
    return found


def _own_file(cls: type) -> Path | None:
    try:
        file = Path(inspect.getfile(cls)).resolve()
    except (TypeError, OSError):  # built in, or typed at a prompt
        return None
    installed = any(file.is_relative_to(folder.resolve()) for folder in INSTALLED)
    return None if installed or file.is_relative_to(Path(hsdlab.__file__).parent) else file


def _hash(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]
