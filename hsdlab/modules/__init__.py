"""LightningModules: decoding a data set, and fine-tuning a model on one.

The names are imported when first used: `LoRA` brings peft, which decoding needs for adapters alone.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hsdlab.modules.checkpoints import Checkpoints
    from hsdlab.modules.decode import DecodeModule, load_decode_module
    from hsdlab.modules.deep_supervision import DeepSupervision
    from hsdlab.modules.exit_classifier import ExitClassifierModule
    from hsdlab.modules.exit_router import ExitRouterModule
    from hsdlab.modules.finetune import FinetuneModule
    from hsdlab.modules.layer_dropout import LayerDropout
    from hsdlab.modules.lora import LoRA

__all__ = [
    "Checkpoints",
    "DecodeModule",
    "DeepSupervision",
    "ExitClassifierModule",
    "ExitRouterModule",
    "FinetuneModule",
    "LayerDropout",
    "LoRA",
    "load_decode_module",
]

_FILES = {
    "Checkpoints": "checkpoints",
    "DecodeModule": "decode",
    "DeepSupervision": "deep_supervision",
    "ExitClassifierModule": "exit_classifier",
    "ExitRouterModule": "exit_router",
    "FinetuneModule": "finetune",
    "LayerDropout": "layer_dropout",
    "LoRA": "lora",
    "load_decode_module": "decode",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"hsdlab.modules.{_FILES[name]}"), name)
