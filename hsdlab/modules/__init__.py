"""LightningModules: decoding a data set (fine-tuning comes later)."""

from hsdlab.modules.decode import DecodeModule, load_decode_module

__all__ = ["DecodeModule", "load_decode_module"]
