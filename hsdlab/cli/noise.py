"""What libraries print in every run, and what tells the user nothing that could be used or mended: it is left out.

Each entry names the message and who gives it, so that no other one is lost.
"""

import logging
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from transformers.utils import logging as transformers_logging

NOTICES = re.compile(
    r"(GPU|TPU) available: False, |"  # a GPU that there is stays named
    r".*Tip: For seamless cloud |"  # advertisements
    r"Loading `train_dataloader` to estimate number of stepping batches\.|"
    r"`weights_only` was not set, defaulting to `False`\."  # CheckpointFiles reads without running code
)
"""Of Lightning's log."""
WARNINGS: tuple[tuple[str, type[Warning], str], ...] = (
    (".*isinstance.treespec, LeafSpec", FutureWarning, ""),  # Lightning 2.6 calls what torch 2.13 deprecates
    (r"Found \d+ module\(s\) in eval mode", UserWarning, ""),  # the frozen model under a classifier or router
    ("`is_gradient_checkpointing` is deprecated", FutureWarning, ""),  # peft calls what transformers 5 deprecates
)
"""Message, category and module of warnings."""


class _Notices(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return NOTICES.match(record.getMessage()) is None


@contextmanager
def without_noise() -> Iterator[None]:
    """Leave out what libraries print in every run within a block; see the lists of this module.

    Yields:
        Nothing.
    """
    handlers = logging.getLogger("lightning.pytorch").handlers
    notices = _Notices()
    before = transformers_logging.set_tqdm_hook(_without_bar_of_weights)
    for handler in handlers:
        handler.addFilter(notices)
    try:
        with warnings.catch_warnings():
            for message, category, module in WARNINGS:
                warnings.filterwarnings("ignore", message, category, module)
            yield
    finally:
        transformers_logging.set_tqdm_hook(before)
        for handler in handlers:
            handler.removeFilter(notices)


def _without_bar_of_weights(bar: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """Make a progress bar of transformers, none for weights on the disk; downloads keep theirs."""
    hidden = {"disable": True} if options.get("desc") == "Loading weights" else {}
    return bar(*args, **{**options, **hidden})
