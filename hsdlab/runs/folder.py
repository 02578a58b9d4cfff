"""The runs hold the folder that they write into, so that no two write into one."""

import inspect
from collections.abc import Callable
from contextlib import nullcontext
from functools import wraps
from pathlib import Path
from typing import ParamSpec, TypeVar

from hsdlab.records.run_folder import held

P = ParamSpec("P")
R = TypeVar("R")


def holding_folder(run: Callable[P, R]) -> Callable[P, R]:
    """Lock the folder of a run while a function runs, in the first process.

    Args:
        run: A function with parameters `trainer` and `folder`.

    Returns:
        The function with the same parameters. It raises what `held` raises if another process holds the folder.
    """
    signature = inspect.signature(run)

    @wraps(run)
    def holds(*args: P.args, **kwargs: P.kwargs) -> R:
        given = signature.bind(*args, **kwargs).arguments
        with held(Path(given["folder"])) if given["trainer"].is_global_zero else nullcontext():
            return run(*args, **kwargs)

    return holds
