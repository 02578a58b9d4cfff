"""The folder in which hsdlab keeps what it downloaded or converted."""

import os
from pathlib import Path

from platformdirs import user_cache_path


def cache_folder() -> Path:
    """Find the folder for embedded models and data.

    Returns:
        $HSDLAB_CACHE as an absolute path if it is set, else "hsdlab" in the system's cache folder for the user. On
        Linux that is $XDG_CACHE_HOME/hsdlab, by default ~/.cache/hsdlab. The folder need not exist.
    """
    if os.environ.get("HSDLAB_CACHE"):
        return Path(os.environ["HSDLAB_CACHE"]).expanduser().absolute()
    return user_cache_path("hsdlab", appauthor=False)
