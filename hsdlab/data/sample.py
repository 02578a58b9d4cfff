"""A few examples of a split in batches, drawn by the data module's seed: for measuring, not for scoring."""

from typing import Any

from hsdlab.data.base import GenerationDataModule
from hsdlab.data.batches import Pair, Prompt, collate_with_pairs, pad_token_id_of


def sample_batches(datamodule: GenerationDataModule, split: str, examples: int) -> list[dict[str, Any]]:
    """Return batches of prompts and pairs (see `collate_with_pairs`), each with its first reference.

    Args:
        datamodule: Connected to a tokenizer.
        split: One of train, validation and test.
        examples: How many at most, of those that the data module's `limit` leaves.

    Raises:
        ValueError: There is no such split, or it holds no example.
        RuntimeError: The data module has no tokenizer.
    """
    tokenizer = datamodule.connected_tokenizer()
    rows = []
    for example in datamodule.examples(split, at_most=examples):
        prompt_ids, _ = datamodule.template.encode(example.source, tokenizer, datamodule.prompt_limit_tokens)
        target_ids, _ = datamodule.template.encode_target(
            example.references[0], tokenizer, datamodule.target_limit_tokens
        )
        rows.append((Prompt(example, prompt_ids), Pair(prompt_ids, target_ids)))
    pad_token_id, size = pad_token_id_of(tokenizer), datamodule.batch_size
    return [collate_with_pairs(rows[start : start + size], pad_token_id) for start in range(0, len(rows), size)]
