"""Teacher forcing: the texts of a batch of `collate_pairs`, under the names of a model's forward pass."""

from collections.abc import Mapping
from typing import Any

from hsdlab.decoding.families import position_ids


def model_inputs(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Name the texts of a batch as `replay` takes them.

    Args:
        batch: Of `collate_pairs`.

    Returns:
        input_ids and attention_mask of the texts. For an encoder-decoder these are decoder_input_ids and
        decoder_attention_mask, and input_ids and attention_mask are the sources.
    """
    text, mask = batch["input_ids"], batch["attention_mask"]
    if "source_ids" not in batch:
        return {"input_ids": text, "attention_mask": mask}
    return {
        "input_ids": batch["source_ids"],
        "attention_mask": batch["source_mask"],
        "decoder_input_ids": text,
        "decoder_attention_mask": mask,
    }


def at_full_depth(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Name the texts of a batch as a plain forward pass takes them.

    Args:
        batch: Of `collate_pairs`.

    Returns:
        Keyword arguments. Texts of a decoder-only model are padded on the left, which moves no position.
    """
    inputs = model_inputs(batch)
    if "source_ids" in batch:
        return {**inputs, "use_cache": False}
    return {**inputs, "position_ids": position_ids(inputs["attention_mask"]), "use_cache": False}
