"""hsdlab: decoding with fewer layers per token, on PyTorch Lightning.

Hierarchical Skip Decoding (arXiv 2403.14919), SkipDecode (arXiv 2307.02628) and CALM (arXiv 2207.07061).

The public names are imported when first used, so that ``import hsdlab`` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hsdlab.version import __version__

if TYPE_CHECKING:
    from hsdlab.decoding import SubLayers, generate, replay
    from hsdlab.errors import UserError
    from hsdlab.models import load_model
    from hsdlab.strategies import (
        CALM,
        HSD,
        PABEE,
        Compose,
        ConfidenceStrategy,
        DeeBERT,
        FullDepth,
        LearnedExit,
        OracleExit,
        ScheduledStrategy,
        SkipDecode,
        SkipStrategy,
        StaticDepth,
        SubLayerStrategy,
        Verified,
    )

__all__ = [
    "CALM",
    "HSD",
    "PABEE",
    "Compose",
    "ConfidenceStrategy",
    "DeeBERT",
    "FullDepth",
    "LearnedExit",
    "OracleExit",
    "ScheduledStrategy",
    "SkipDecode",
    "SkipStrategy",
    "StaticDepth",
    "SubLayerStrategy",
    "SubLayers",
    "UserError",
    "Verified",
    "__version__",
    "generate",
    "load_model",
    "replay",
]

_ROOMS = {
    "SubLayers": "decoding",
    "UserError": "errors",
    "generate": "decoding",
    "load_model": "models",
    "replay": "decoding",
}
"""Where the public names are; all others are strategies."""


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'hsdlab' has no attribute {name!r}")
    return getattr(import_module(f"hsdlab.{_ROOMS.get(name, 'strategies')}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
