"""From examples to padded batches: prompts for decoding, pairs of prompt and reference for the loss."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torch.utils.data.distributed import DistributedSampler
from transformers import PreTrainedTokenizerBase

from hsdlab.errors import UserError

Row = TypeVar("Row")
PaddingSide = Literal["left", "right"]


@dataclass(frozen=True)
class Example:
    """A source text with every reference that a prediction may be compared with.

    Attributes:
        id: Unique within the data set.
        source: What the model reads.
        references: What people wrote for it, at least one.
    """

    id: str
    source: str
    references: tuple[str, ...]


@dataclass(frozen=True)
class Prompt:
    """An example with its prompt as token ids, not padded.

    Attributes:
        example: The example.
        input_ids: The prompt's token ids, those of the template and special tokens included. For an encoder-decoder
            those of the source.
        position: Place among the examples of its split that are in use, from 0; None where it comes from no split.
    """

    example: Example
    input_ids: Sequence[int]
    position: int | None = None


@dataclass(frozen=True)
class Pair:
    """A prompt and one reference as token ids, neither padded.

    Attributes:
        prompt_ids: The prompt, as decoding gets it. For an encoder-decoder the decoder's.
        target_ids: The reference, its end-of-sequence token included unless it was cut.
        id: Of the example.
        source_ids: What an encoder reads; None for a decoder-only model.
    """

    prompt_ids: Sequence[int]
    target_ids: Sequence[int]
    id: str = ""
    source_ids: Sequence[int] | None = None

    @property
    def tokens(self) -> int:
        """All tokens of the pair, without padding."""
        return len(self.prompt_ids) + len(self.target_ids) + len(self.source_ids or ())


class Rows(Dataset[Row]):
    """The prompts or pairs of one split, in the order of the file.

    Args:
        rows: The prompts or pairs.
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Row:
        return self.rows[index]


def batches_by_length(lengths: Sequence[int], batch_size: int) -> list[int]:
    """Order rows so that those of a batch have similar lengths, and therefore little padding.

    The batches come in the order of their first rows: the lengths of the first batches are as mixed as the data are.
    Rows of equal length, and single rows, keep their order.

    Args:
        lengths: Of each row.
        batch_size: Rows per batch.

    Returns:
        Positions of the rows, batch after batch, ascending in each. A smaller batch is the last one; it has the
        longest rows.
    """
    by_length = sorted(range(len(lengths)), key=lengths.__getitem__)
    batches = [sorted(by_length[start : start + batch_size]) for start in range(0, len(lengths), batch_size)]
    whole = len(lengths) // batch_size
    return [position for batch in (*sorted(batches[:whole]), *batches[whole:]) for position in batch]


class BatchesInTurn(DistributedSampler[int]):
    """The rows of every so many-th batch, so that several processes have the batches that one would have.

    Lightning would put a sampler that repeats rows in place of any other than a DistributedSampler
    (pytorch-lightning#12862); torch's own and Lightning's unrepeated one deal out rows, which makes other batches.

    Args:
        rows: The rows.
        order: Positions of the rows, batch after batch; only the last batch may be smaller.
        batch_size: Rows per batch.
        world_size: Number of processes.
        rank: Of this process: its first batch is the one of this number.
    """

    def __init__(self, rows: Rows[Any], order: Sequence[int], batch_size: int, world_size: int, rank: int) -> None:
        super().__init__(rows, num_replicas=world_size, rank=rank, shuffle=False)
        self.positions = [
            position
            for start in range(rank * batch_size, len(order), world_size * batch_size)
            for position in order[start : start + batch_size]
        ]

    def __iter__(self) -> Iterator[int]:
        return iter(self.positions)

    def __len__(self) -> int:
        return len(self.positions)


def collate_prompts(prompts: Sequence[Prompt], pad_token_id: int, padding_side: PaddingSide = "left") -> dict[str, Any]:
    """Make a batch for decoding.

    Args:
        prompts: The rows.
        pad_token_id: Fills `input_ids` where `attention_mask` is 0.
        padding_side: "left" for decoder-only models, "right" for sources of encoder-decoders.

    Returns:
        The batch. "input_ids" and "attention_mask" are LongTensor [rows, length], "ids" and "sources" hold a string
        a row, "references" a list of strings a row, and "positions" the place of each row in its split.
    """
    input_ids, attention_mask = padded([prompt.input_ids for prompt in prompts], pad_token_id, padding_side)
    return {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "ids": [prompt.example.id for prompt in prompts],
        "sources": [prompt.example.source for prompt in prompts],
        "references": [list(prompt.example.references) for prompt in prompts],
        "positions": [prompt.position for prompt in prompts],
    }


def collate_pairs(pairs: Sequence[Pair], pad_token_id: int) -> dict[str, Any]:
    """Make a batch for the loss: each row is prompt and reference in one.

    Rows are padded on the left. Those of an encoder-decoder are padded on the right, and hold the decoder's prompt
    and the reference; the sources are apart.

    Args:
        pairs: The rows.
        pad_token_id: Fills `input_ids` where `attention_mask` is 0.

    Returns:
        The batch. "input_ids" and "attention_mask" are LongTensor [rows, length], "target_mask" is BoolTensor
        [rows, length], true at the tokens of the reference, and "ids" are those of each row's example. For an
        encoder-decoder also "source_ids" and "source_mask", LongTensor [rows, length of the sources].
    """
    sources = [pair.source_ids for pair in pairs if pair.source_ids is not None]
    texts = [[*pair.prompt_ids, *pair.target_ids] for pair in pairs]
    input_ids, attention_mask = padded(texts, pad_token_id, "right" if sources else "left")
    places = attention_mask.cumsum(dim=1)  # (rows, length); the text's first token has 1
    of_prompt = torch.tensor([len(pair.prompt_ids) for pair in pairs], dtype=torch.long)
    batch = {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "target_mask": attention_mask.bool() & (places > of_prompt[:, None]),
        "ids": [pair.id for pair in pairs],
    }
    if sources:
        batch["source_ids"], batch["source_mask"] = padded(sources, pad_token_id, "right")
    return batch


def padded(rows: Sequence[Sequence[int]], pad_token_id: int, padding_side: PaddingSide) -> tuple[Tensor, Tensor]:
    """Put token ids into a tensor.

    Args:
        rows: Token ids of each row.
        pad_token_id: Fills the shorter rows.
        padding_side: Where it fills them.

    Returns:
        The ids, and the mask that is 1 at tokens and 0 at padding, LongTensor [rows, length] each.
    """
    length = max(map(len, rows), default=0)
    input_ids = torch.full((len(rows), length), pad_token_id)  # (rows, length)
    attention_mask = torch.zeros_like(input_ids)  # (rows, length)
    for number, row in enumerate(rows):
        start = length - len(row) if padding_side == "left" else 0
        input_ids[number, start : start + len(row)] = torch.tensor(row)
        attention_mask[number, start : start + len(row)] = 1
    return input_ids, attention_mask


def collate_with_pairs(
    rows: Sequence[tuple[Prompt, Pair]], pad_token_id: int, padding_side: PaddingSide = "left"
) -> dict[str, Any]:
    """Make a batch for decoding with the pairs of the same examples, for the loss.

    Args:
        rows: A prompt and a pair of each example.
        pad_token_id: Fills `input_ids` where `attention_mask` is 0.
        padding_side: Of the prompts; see `collate_prompts`.

    Returns:
        What `collate_prompts` returns, and under "pairs" what `collate_pairs` returns.
    """
    prompts, pairs = [prompt for prompt, _ in rows], [pair for _, pair in rows]
    return {**collate_prompts(prompts, pad_token_id, padding_side), "pairs": collate_pairs(pairs, pad_token_id)}


def collate_nothing(rows: Sequence[Row], collate: Callable[[Sequence[Row]], Any]) -> Any:
    """Make a batch without a row, for a process that has no example.

    Args:
        rows: Prompts or pairs; none of them is used.
        collate: Makes a batch.

    Returns:
        What `collate` makes of no rows: tensors of shape [0, 0] and empty lists.
    """
    return collate(rows[:0])


def pad_token_id_of(tokenizer: PreTrainedTokenizerBase) -> int:
    """Choose the token id to pad with.

    Args:
        tokenizer: Its settings are left as they are.

    Returns:
        The id of the tokenizer's padding token, or else of its end-of-sequence token.

    Raises:
        UserError: The tokenizer has neither.
    """
    if tokenizer.pad_token_id is not None:
        return tokenizer.pad_token_id
    if tokenizer.eos_token_id is not None:
        return tokenizer.eos_token_id
    raise UserError("The tokenizer has neither a padding nor an end-of-sequence token: set tokenizer.pad_token")
