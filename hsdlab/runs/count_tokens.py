"""Count the tokens of the texts that a model is to write: the vocabulary of its drafts under ``Verified``."""

from collections import Counter
from pathlib import Path

from lightning.pytorch import Trainer

from hsdlab.data import GenerationDataModule
from hsdlab.decoding.token_counts import TokenCounts
from hsdlab.errors import UserError
from hsdlab.modules import DecodeModule
from hsdlab.progress import Steps
from hsdlab.records.files import replace_file
from hsdlab.reporting.tables import console
from hsdlab.runs.folder import holding_folder

FILE = "token_counts.jsonl"


@holding_folder
def count_tokens(
    trainer: Trainer, module: DecodeModule, datamodule: GenerationDataModule, folder: str | Path, *, size: int = 8000
) -> TokenCounts:
    """Count the tokens of the texts of the training split, and write the most frequent ones to token_counts.jsonl.

    Args:
        trainer: Its first process writes.
        module: Holds the tokenizer, and says how long a text may be.
        datamodule: Its training split is read: the references, or the texts of its `targets`, each with its
            end-of-sequence token, as training has them.
        folder: A missing folder is created.
        size: The most tokens to write, 1 or more.

    Returns:
        The tokens, most frequent first.

    Raises:
        UserError: An option out of its range, or the data is malformed.
    """
    if size < 1:
        raise UserError(f"size={size}: expected 1 or more.")
    datamodule.prepare_data()
    datamodule.connect_to(module)
    examples = datamodule.examples("train")
    counted: Counter[int] = Counter()
    texts = 0
    with Steps("Counting", len(examples), "examples", quiet=not trainer.is_global_zero) as steps:
        for of_example in datamodule.target_texts(examples):
            for text in of_example:
                ids, _ = datamodule.template.encode_target(text, module.tokenizer, datamodule.target_limit_tokens)
                counted.update(ids)
            texts += len(of_example)
            steps.advance()
    found = TokenCounts.most_common(counted, size, module.tokenizer)
    if trainer.is_global_zero:
        path = Path(folder) / FILE
        replace_file(path, found.text())
        console().print(
            f"In {path}: the {len(found.ids):,} most frequent of the {len(counted):,} tokens of {texts:,} texts, "
            f"{sum(found.counts) / counted.total():.2%} of what the texts hold. As a draft's vocabulary: "
            f"Verified(…, draft_vocabulary={str(path)!r}).",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
    return found
