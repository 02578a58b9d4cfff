"""The base of every data set: examples in, left-padded prompts out."""

import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from lightning import LightningDataModule
from lightning.pytorch.overrides.distributed import UnrepeatedDistributedSampler
from lightning.pytorch.utilities import rank_zero_warn
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedTokenizerBase

from hsdlab.data.prompt import PromptTemplate

SPLITS = ("train", "validation", "test")


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
    """An example with its prompt as token ids, not padded."""

    example: Example
    input_ids: list[int]


class _Prompts(Dataset[Prompt]):
    """The prompts of one split, in the order of the file."""

    def __init__(self, prompts: Sequence[Prompt]) -> None:
        self.prompts = prompts

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, index: int) -> Prompt:
        return self.prompts[index]


class GenerationDataModule(LightningDataModule, ABC):
    """A data set for conditional generation; a subclass writes `load_examples`, nothing else.

    The tokenizer and the longest prompt come from the LightningModule of the Trainer that runs it (its
    `tokenizer`, `max_new_tokens` and `model.config.max_position_embeddings`), or by hand from `connect`.
    Batches keep the order of the examples. With several processes each example is read once, by one of them.

    Args:
        prompt: Template of the prompt; `{source}` stands for the source text. What follows it is never cut.
        chat: Wrap the prompt as a user's message in the tokenizer's chat template.
        batch_size: Prompts per batch and process.
        limit: Examples per split at most, drawn by `seed` (a larger limit adds to a smaller one's). All by
            default.
        seed: Seed of the draw.
        max_prompt_tokens: Longest prompt in tokens; sources are cut at their end to fit. By default the
            model's context minus `max_new_tokens`.
        num_workers: Worker processes that load batches.

    Raises:
        ValueError: A template without exactly one `{source}`, or a number out of its range.
    """

    def __init__(
        self,
        prompt: str = "{source}\n",
        chat: bool = False,
        batch_size: int = 8,
        limit: int | None = None,
        seed: int = 0,
        max_prompt_tokens: int | None = None,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        _check_at_least("batch_size", batch_size, 1)
        _check_at_least("limit", limit, 1)
        _check_at_least("max_prompt_tokens", max_prompt_tokens, 1)
        _check_at_least("num_workers", num_workers, 0)
        self.template = PromptTemplate(prompt, chat)
        self.batch_size = batch_size
        self.limit = limit
        self.seed = seed
        self.max_prompt_tokens = max_prompt_tokens
        self.num_workers = num_workers
        self.tokenizer: PreTrainedTokenizerBase | None = None
        self.prompt_limit_tokens: int | None = None
        self.cut: dict[str, int] = {}  # split -> how many of its prompts were cut
        self._prompts: dict[str, _Prompts] = {}

    @abstractmethod
    def load_examples(self, split: str) -> list[Example]:
        """Return all examples of `split` ("train", "validation" or "test"), in a fixed order."""

    def connect(self, tokenizer: PreTrainedTokenizerBase, max_prompt_tokens: int | None = None) -> None:
        """Set the tokenizer and the longest prompt; a Trainer's run does it by itself.

        Args:
            tokenizer: Its settings are left as they are.
            max_prompt_tokens: Longest prompt in tokens; by default the parameter of the same name, else no
                limit.

        Raises:
            ValueError: `max_prompt_tokens` is below 1.
        """
        _check_at_least("max_prompt_tokens", max_prompt_tokens, 1)
        limit = self.max_prompt_tokens if max_prompt_tokens is None else max_prompt_tokens
        if tokenizer is not self.tokenizer or limit != self.prompt_limit_tokens:
            self._prompts.clear()
            self.cut.clear()
        self.tokenizer = tokenizer
        self.prompt_limit_tokens = limit

    def setup(self, stage: str) -> None:
        """Connect to the LightningModule of the Trainer, if it has a tokenizer.

        Raises:
            ValueError: The prompts allowed by `max_prompt_tokens` do not fit the model's context.
        """
        module = self.trainer.lightning_module if self.trainer is not None else None
        if module is None or not hasattr(module, "tokenizer"):
            return
        room = None
        context = getattr(module.model.config, "max_position_embeddings", None)
        if context is not None:
            room = context - module.max_new_tokens
            if room < (self.max_prompt_tokens or 1):
                raise ValueError(
                    f"max_prompt_tokens={self.max_prompt_tokens} and max_new_tokens={module.max_new_tokens} "
                    f"do not fit the model's context of {context} tokens: lower one of them"
                )
        self.connect(module.tokenizer, self.max_prompt_tokens or room)

    def examples(self, split: str) -> list[Example]:
        """Return the examples of `split` in use, in file order: all, or the `limit` drawn by `seed`.

        Raises:
            ValueError: There is no such split, or it holds no example.
        """
        if split not in SPLITS:
            raise ValueError(f"No split {split!r}: expected one of {', '.join(SPLITS)}")
        examples = self.load_examples(split)
        if not examples:
            raise ValueError(
                f"The {split} split of {type(self).__name__} holds no example: expected at least one"
            )
        positions = list(range(len(examples)))
        random.Random(self.seed).shuffle(positions)
        return [examples[position] for position in sorted(positions[: self.limit])]

    def val_dataloader(self) -> DataLoader[Prompt]:
        """Return the batches of the validation split."""
        return self._decoding_loader("validation")

    def test_dataloader(self) -> DataLoader[Prompt]:
        """Return the batches of the test split."""
        return self._decoding_loader("test")

    def predict_dataloader(self) -> DataLoader[Prompt]:
        """Return the batches of the test split."""
        return self._decoding_loader("test")

    def _decoding_loader(self, split: str) -> DataLoader[Prompt]:
        """Return the batches of a split for decoding, in file order (see `collate_prompts`)."""
        if self.tokenizer is None:
            raise RuntimeError(
                f"{type(self).__name__} has no tokenizer: run it in a Trainer whose LightningModule has one, "
                "or call connect(tokenizer) first"
            )
        if split not in self._prompts:
            self._prompts[split] = self._encode(split, self.tokenizer)
        prompts = self._prompts[split]
        return DataLoader(
            prompts,
            batch_size=self.batch_size,
            sampler=self._sampler(split, prompts),
            num_workers=self.num_workers,
            collate_fn=partial(collate_prompts, pad_token_id=_pad_token_id(self.tokenizer)),
        )

    def _encode(self, split: str, tokenizer: PreTrainedTokenizerBase) -> _Prompts:
        """Encode the prompts of a split; count and report the ones that had to be cut."""
        prompts, cut = [], 0
        for example in self.examples(split):
            input_ids, was_cut = self.template.encode(example.source, tokenizer, self.prompt_limit_tokens)
            prompts.append(Prompt(example, input_ids))
            cut += was_cut
        self.cut[split] = cut
        if cut:
            rank_zero_warn(
                f"{cut} of {len(prompts)} {split} prompts were cut to {self.prompt_limit_tokens} tokens",
                category=UserWarning,
            )
        return _Prompts(prompts)

    def _sampler(self, split: str, prompts: _Prompts) -> UnrepeatedDistributedSampler | None:
        """Return a sampler that reads each example once over all processes; Lightning's own repeats some.

        Lightning leaves a loader alone if its sampler is a DistributedSampler (pytorch-lightning#12862).
        """
        if self.trainer is None or self.trainer.world_size == 1:
            return None
        if len(prompts) < self.trainer.world_size:
            raise ValueError(
                f"The {split} split has {len(prompts)} examples for {self.trainer.world_size} processes: "
                "use fewer devices or a larger limit"
            )
        return UnrepeatedDistributedSampler(
            prompts, num_replicas=self.trainer.world_size, rank=self.trainer.global_rank, shuffle=False
        )


def collate_prompts(prompts: Sequence[Prompt], pad_token_id: int) -> dict[str, Any]:
    """Make a batch for decoding, padded on the left.

    Args:
        prompts: The rows.
        pad_token_id: Fills `input_ids` where `attention_mask` is 0.

    Returns:
        "input_ids" and "attention_mask": LongTensor [rows, length], "ids" and "sources": a string a row,
        "references": a list of strings a row.
    """
    length = max(len(prompt.input_ids) for prompt in prompts)
    input_ids = torch.full((len(prompts), length), pad_token_id)  # (rows, length)
    attention_mask = torch.zeros_like(input_ids)  # (rows, length)
    for row, prompt in enumerate(prompts):
        start = length - len(prompt.input_ids)
        input_ids[row, start:] = torch.tensor(prompt.input_ids)
        attention_mask[row, start:] = 1
    return {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "ids": [prompt.example.id for prompt in prompts],
        "sources": [prompt.example.source for prompt in prompts],
        "references": [list(prompt.example.references) for prompt in prompts],
    }


def _pad_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the id to pad with: the tokenizer's own, else its end of sequence."""
    if tokenizer.pad_token_id is not None:
        return tokenizer.pad_token_id
    if tokenizer.eos_token_id is not None:
        return tokenizer.eos_token_id
    raise ValueError(
        "The tokenizer has neither a padding nor an end-of-sequence token: set tokenizer.pad_token"
    )


def _check_at_least(name: str, value: int | None, smallest: int) -> None:
    if value is not None and value < smallest:
        raise ValueError(f"{name}={value}: expected {smallest} or more")
