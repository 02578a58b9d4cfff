"""Where hsdlab keeps what it made or fetched once."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """The folder for embedded models and data: $HSDLAB_CACHE, or hsdlab in the user's cache folder."""
    if os.environ.get("HSDLAB_CACHE"):
        return Path(os.environ["HSDLAB_CACHE"]).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hsdlab"
