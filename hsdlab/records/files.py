"""Result files: written whole or not at all, pictures too, without floats that JSON cannot hold."""

import math
import os
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure


def replace_file(path: Path, content: bytes | str) -> None:
    """Write a file whole or not at all: an interrupted write leaves the earlier file.

    Args:
        path: Its folder is there.
        content: Text is encoded as UTF-8.
    """
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    with unfinished.open("wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, path)


def replace_figure(path: Path, figure: Figure, dots_per_inch: int = 200) -> None:
    """Write a picture as PNG, whole or not at all."""
    picture = BytesIO()
    figure.savefig(picture, format="png", dpi=dots_per_inch)
    replace_file(path, picture.getvalue())


def plain(value: Any) -> Any:
    """Return nested data with null for every float that JSON cannot hold."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
