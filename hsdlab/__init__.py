"""hsdlab: decoding with fewer layers per token, on PyTorch Lightning.

Hierarchical Skip Decoding (arXiv 2403.14919), SkipDecode (arXiv 2307.02628) and CALM (arXiv 2207.07061).
"""

from hsdlab.decoding import generate, replay
from hsdlab.models import load_model
from hsdlab.strategies import (
    CALM,
    HSD,
    ConfidenceStrategy,
    FullDepth,
    ScheduledStrategy,
    SkipDecode,
    SkipStrategy,
)
from hsdlab.version import __version__

__all__ = [
    "CALM",
    "HSD",
    "ConfidenceStrategy",
    "FullDepth",
    "ScheduledStrategy",
    "SkipDecode",
    "SkipStrategy",
    "__version__",
    "generate",
    "load_model",
    "replay",
]
