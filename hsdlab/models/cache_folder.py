"""Where hsdlab keeps what it made or fetched once."""

import os
from pathlib import Path

from platformdirs import user_cache_path


def cache_folder() -> Path:
    """The folder for embedded models and data: $HSDLAB_CACHE, or the user's cache folder of the system.

    On Linux that is $XDG_CACHE_HOME/hsdlab, by default ~/.cache/hsdlab.
    """
    if os.environ.get("HSDLAB_CACHE"):
        return Path(os.environ["HSDLAB_CACHE"]).expanduser().absolute()
    return user_cache_path("hsdlab", appauthor=False)
