"""A few examples of a split in batches, drawn by the data module's seed: for measuring, not for scoring."""

from collections.abc import Mapping, Sequence
from typing import Any

from hsdlab.data.base import GenerationDataModule
from hsdlab.data.batches import Prompt, collate_with_pairs, pad_token_id_of


def sample_batches(
    datamodule: GenerationDataModule, split: str, examples: int, texts: Mapping[str, Sequence[int]] | None = None
) -> list[dict[str, Any]]:
    """Draw a few examples and make batches of them: each prompt with a text that follows it.

    Args:
        datamodule: Connected to a tokenizer.
        split: "train", "validation" or "test".
        examples: How many at most, of those that the data module's `limit` leaves.
        texts: Example id to token ids of the text; examples that are not in it are left out. None for the first
            references.

    Returns:
        Batches of `datamodule.batch_size` examples in file order (see `collate_with_pairs`).

    Raises:
        UserError: There is no such split, or it holds no example.
        RunError: The data module has no tokenizer.
    """
    tokenizer = datamodule.connected_tokenizer()
    rows = []
    for example in datamodule.examples(split, at_most=examples):
        prompt_ids, _ = datamodule.template.encode(example.source, tokenizer, datamodule.prompt_limit_tokens)
        if texts is None:
            target_ids, _ = datamodule.template.encode_target(
                example.references[0], tokenizer, datamodule.target_limit_tokens
            )
        elif example.id in texts:
            target_ids = list(texts[example.id])
        else:
            continue
        rows.append((Prompt(example, prompt_ids), datamodule.template.pair(prompt_ids, target_ids)))
    pad_token_id, size = pad_token_id_of(tokenizer), datamodule.batch_size
    side = datamodule.template.padding_side
    return [collate_with_pairs(rows[start : start + size], pad_token_id, side) for start in range(0, len(rows), size)]
