"""Files that are written whole or not at all."""

import os
from pathlib import Path


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
