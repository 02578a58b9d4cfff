"""LightningModules: decoding a data set, and fine-tuning a model on one."""

from hsdlab.modules.decode import DecodeModule, load_decode_module
from hsdlab.modules.finetune import FinetuneModule
from hsdlab.modules.lora import LoRA

__all__ = ["DecodeModule", "FinetuneModule", "LoRA", "load_decode_module"]
