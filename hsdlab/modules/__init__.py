"""LightningModules: decoding a data set, and fine-tuning a model on one."""

from hsdlab.modules.checkpoints import Checkpoints
from hsdlab.modules.decode import DecodeModule, load_decode_module
from hsdlab.modules.deep_supervision import DeepSupervision
from hsdlab.modules.exit_classifier import ExitClassifierModule
from hsdlab.modules.finetune import FinetuneModule
from hsdlab.modules.layer_dropout import LayerDropout
from hsdlab.modules.lora import LoRA

__all__ = [
    "Checkpoints",
    "DecodeModule",
    "DeepSupervision",
    "ExitClassifierModule",
    "FinetuneModule",
    "LayerDropout",
    "LoRA",
    "load_decode_module",
]
