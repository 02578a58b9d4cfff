"""The base of every data set: examples in, padded prompts out, and pairs with references for training.

Longer than other files: Lightning's hooks of one class, and what they share.
"""

import hashlib
import random
from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, get_args

from lightning import LightningDataModule
from lightning.pytorch.utilities import rank_zero_warn
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase

from hsdlab.data.batches import (
    BatchesInTurn,
    Pair,
    Prompt,
    Rows,
    batches_by_length,
    collate_nothing,
    collate_prompts,
    collate_with_pairs,
    pad_token_id_of,
)
from hsdlab.data.batches import Example as Example  # the seam of every data set
from hsdlab.data.checks import check_examples
from hsdlab.data.prompt import PromptTemplate
from hsdlab.data.source_target import NO_LIMIT, SourceAndTarget, context_tokens, decoder_start
from hsdlab.data.targets import read_targets
from hsdlab.data.training import TrainingLoader
from hsdlab.errors import RunError, UserError

Split = Literal["train", "validation", "test"]
SPLITS = get_args(Split)


class GenerationDataModule(LightningDataModule, ABC):
    """A data set for conditional generation; a subclass writes `load_examples`, nothing else.

    The tokenizer and the longest prompt come from the LightningModule of the Trainer that runs it (its
    `tokenizer`, `max_new_tokens` and `model.config.max_position_embeddings`), or by hand from `connect`.
    A batch for decoding holds prompts of similar length, so that little is padded. The batches come in the order of
    their first examples. Several processes take them in turn, each batch as a single process has it. A process for
    which there is none gets an empty batch. For training, each reference of an example
    forms a pair with its prompt. The order of the pairs depends on `seed` and the epoch. References are cut to
    `max_new_tokens`, the longest text that decoding could write.

    An encoder-decoder model reads the source by itself, after `prefix` and without the prompt's template. References
    are its targets, apart from the source.

    Args:
        prompt: Template of the prompt of a decoder-only model. `{source}` stands for the source text; what follows it
            is never cut.
        chat: Wrap the prompt as a user's message in the tokenizer's chat template.
        batch_size: Prompts per batch and process.
        limit: Examples per split at most, drawn by `seed`. A larger limit keeps those of a smaller one. By default
            all.
        seed: Seed of that draw, and of the order of training.
        max_prompt_tokens: Longest prompt in tokens; sources are cut at their end to fit. By default the
            model's context minus `max_new_tokens`. Of an encoder-decoder the longest source, by default its context,
            or what its tokenizer says if it has none, as T5.
        group_by_length: Train on batches of pairs of similar length: less padding, an order less random.
        targets: Files of `hsdlab predict`, whose texts are the training targets in place of the references:
            sequence-level knowledge distillation (Kim and Rush 2016, arXiv 1606.07947). They must hold a text for every
            example of the splits whose loss is computed. By default the references are the training targets.
        predict_split: The split that `predict` decodes: train, validation or test.
        num_workers: Worker processes that load batches; 0 loads them in the main process.
        prefix: Text before each source of an encoder-decoder model, such as "summarize: " for T5. None by default.

    Raises:
        UserError: A template without exactly one `{source}`, or a number out of its range.
    """

    def __init__(
        self,
        prompt: str = "{source}\n",
        chat: bool = False,
        batch_size: int = 8,
        limit: int | None = None,
        seed: int = 0,
        max_prompt_tokens: int | None = None,
        group_by_length: bool = False,
        targets: Sequence[str] = (),
        predict_split: Split = "test",
        num_workers: int = 0,
        prefix: str = "",
    ) -> None:
        super().__init__()
        _check_split(predict_split)
        _check_at_least("batch_size", batch_size, 1)
        _check_at_least("limit", limit, 1)
        _check_at_least("max_prompt_tokens", max_prompt_tokens, 1)
        _check_at_least("num_workers", num_workers, 0)
        self.prompt_template = PromptTemplate(prompt, chat)
        self.prefix = prefix
        self.template: PromptTemplate | SourceAndTarget = self.prompt_template
        self.batch_size = batch_size
        self.limit = limit
        self.seed = seed
        self.max_prompt_tokens = max_prompt_tokens
        self.group_by_length = group_by_length
        self.targets = [targets] if isinstance(targets, str) else list(targets)
        self.predict_split: Split = predict_split
        self.num_workers = num_workers
        self.tokenizer: PreTrainedTokenizerBase | None = None
        self.prompt_limit_tokens: int | None = None
        self.target_limit_tokens: int | None = None
        self.validate_loss = False
        self.cut: dict[str, int] = {}  # split -> how many of its prompts were cut
        self.cut_references: dict[str, int] = {}  # split -> how many references of its pairs were cut
        self._prompts: dict[str, Rows[Prompt]] = {}
        self._pairs: dict[str, Rows[Pair]] = {}
        self._training: TrainingLoader | None = None
        self._place: dict[str, int] | None = None

    @abstractmethod
    def load_examples(self, split: str) -> list[Example]:
        """Read all examples of a split.

        Args:
            split: "train", "validation" or "test".

        Returns:
            The examples in a fixed order, on which `limit`, resuming and several processes rely.
        """

    def connect(
        self,
        tokenizer: PreTrainedTokenizerBase,
        max_prompt_tokens: int | None = None,
        max_target_tokens: int | None = None,
        validate_loss: bool = False,
        decoder_start: int | None = None,
    ) -> None:
        """Set the tokenizer and the longest texts; a Trainer's run does it by itself.

        Args:
            tokenizer: Its settings are left as they are.
            max_prompt_tokens: Longest prompt in tokens; by default the parameter of the same name, else no
                limit.
            max_target_tokens: Longest reference of a training pair in tokens, its end-of-sequence token
                included; no limit by default.
            validate_loss: Give each validation batch the pairs for a loss too, under "pairs".
            decoder_start: Id of the token with which an encoder-decoder begins to decode. None for a decoder-only
                model.

        Raises:
            UserError: A limit is below 1, or a chat template for an encoder-decoder.
        """
        _check_at_least("max_prompt_tokens", max_prompt_tokens, 1)
        _check_at_least("max_target_tokens", max_target_tokens, 1)
        limit = self.max_prompt_tokens if max_prompt_tokens is None else max_prompt_tokens
        template = self.template_for(decoder_start)
        before = (self.tokenizer, self.prompt_limit_tokens, self.target_limit_tokens, self.template)
        if before != (tokenizer, limit, max_target_tokens, template):
            for made in (self._prompts, self._pairs, self.cut, self.cut_references):
                made.clear()
        self.tokenizer = tokenizer
        self.template = template
        self.prompt_limit_tokens = limit
        self.target_limit_tokens = max_target_tokens
        self.validate_loss = validate_loss

    def template_for(self, decoder_start: int | None) -> PromptTemplate | SourceAndTarget:
        """Choose how texts become tokens.

        Args:
            decoder_start: As for `connect`.

        Returns:
            The prompt's template for a decoder-only model; for an encoder-decoder, source and target apart.

        Raises:
            UserError: A chat template for an encoder-decoder.
        """
        if decoder_start is None:
            return self.prompt_template
        if self.prompt_template.chat:
            raise UserError("chat=True, but the model is an encoder-decoder, which reads no chat: set chat=False")
        return SourceAndTarget(decoder_start, self.prefix)

    def setup(self, stage: str) -> None:
        """Connect to the LightningModule of the Trainer, if it has a tokenizer.

        Raises:
            UserError: The prompts allowed by `max_prompt_tokens` do not fit the model's context.
        """
        module = self.trainer.lightning_module if self.trainer is not None else None
        if module is not None and hasattr(module, "tokenizer"):
            self.connect_to(module)

    def connect_to(self, module: Any) -> None:
        """Take the tokenizer and the longest texts from a LightningModule, as in a Trainer's run.

        Args:
            module: Has `tokenizer`, `max_new_tokens` and `model`. Its `validates_loss`, if there is one, says
                whether validation batches get pairs for the loss.

        Raises:
            UserError: The prompts allowed by `max_prompt_tokens` do not fit the model's context.
        """
        start = decoder_start(module.model)
        context = context_tokens(module.model.config)
        room = context
        if context is not None:
            left = context - module.max_new_tokens  # for a prompt, of an encoder-decoder at least the decoder's
            if left < 1:
                raise UserError(
                    f"max_new_tokens={module.max_new_tokens} leaves no room for a prompt in the model's context of "
                    f"{context} tokens: lower it"
                )
            room = left if start is None else context
            if room < (self.max_prompt_tokens or 1):
                both = "" if start is not None else f" and max_new_tokens={module.max_new_tokens}"
                raise UserError(
                    f"max_prompt_tokens={self.max_prompt_tokens}{both} "
                    f"do not fit the model's context of {context} tokens: lower one of them"
                )
        elif start is not None and module.tokenizer.model_max_length < NO_LIMIT:
            room = module.tokenizer.model_max_length
        self.connect(
            module.tokenizer,
            self.max_prompt_tokens or room,
            max_target_tokens=getattr(module, "max_new_tokens", None),
            validate_loss=getattr(module, "validates_loss", False),
            decoder_start=start,
        )

    def examples(self, split: str, at_most: int | None = None) -> list[Example]:
        """Select the examples of a split that are in use: all, or the `limit` drawn by `seed`.

        Args:
            split: "train", "validation" or "test".
            at_most: A smaller limit for this call, which takes some of those that `limit` draws. None for no further
                limit.

        Returns:
            The examples in file order, at least one.

        Raises:
            UserError: There is no such split, it holds no example, or an example is malformed.
        """
        _check_split(split)
        examples = self.load_examples(split)
        if not examples:
            raise UserError(f"The {split} split of {type(self).__name__} holds no example: expected at least one")
        check_examples(examples, f"The {split} split of {type(self).__name__}")
        positions = list(range(len(examples)))
        random.Random(self.seed).shuffle(positions)
        return [examples[position] for position in sorted(positions[: self.limit][:at_most])]

    def check(self, *splits: str, for_training: bool = False) -> None:
        """Read everything that a run reads of these splits, so that what is wrong is known before a model is loaded.

        Args:
            *splits: Of train, validation and test.
            for_training: Read the files of `targets` too.

        Raises:
            UserError: Something in the data is malformed.
            OSError: It is missing.
        """
        self.prepare_data()
        for split in splits:
            examples = self.examples(split)
            if for_training and self.targets:
                read_targets(self.targets, examples)

    def target_texts(self, examples: Sequence[Example]) -> list[Sequence[str]]:
        """Select the texts that training learns to write.

        Args:
            examples: Of one split.

        Returns:
            The references of each example, or what was predicted for it in the files of `targets`.

        Raises:
            UserError: An example has no prediction.
        """
        predicted = read_targets(self.targets, examples) if self.targets else {}
        return [predicted.get(example.id, example.references) for example in examples]

    def first_prompt(self, split: str) -> list[int]:
        """Encode all prompts of a split, so that what a template or tokenizer refuses is known before decoding.

        Args:
            split: "train", "validation" or "test".

        Returns:
            Token ids of the first prompt, not padded.

        Raises:
            UserError: A prompt cannot be encoded.
            RunError: The data module has no tokenizer.
        """
        tokenizer = self.connected_tokenizer()
        pad_token_id_of(tokenizer)
        self.template.check(tokenizer)
        return list(self._prompts_of(split).rows[0].input_ids)

    def train_dataloader(self) -> TrainingLoader:
        """Return batches of training pairs (see `collate_pairs`), in another random order in each epoch."""
        tokenizer = self.connected_tokenizer()
        self._training = TrainingLoader(
            self._pairs_of("train"),
            batch_size=self.batch_size,
            pad_token_id=pad_token_id_of(tokenizer),
            seed=self.seed,
            group_by_length=self.group_by_length,
            world_size=1 if self.trainer is None else self.trainer.world_size,
            rank=0 if self.trainer is None else self.trainer.global_rank,
            num_workers=self.num_workers,
        )
        if self._place is not None:
            self._training.load_state_dict(self._place)
            self._place = None
        return self._training

    def state_dict(self) -> dict[str, Any]:
        """Return the place in the training's order, for a checkpoint."""
        return {} if self._training is None else self._training.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from the place in a checkpoint.

        Lightning restores loaders by itself, but not once `trainer.estimated_stepping_batches` was read.
        """
        self._place = state_dict or None

    def training_identity(self) -> dict[str, str | int]:
        """Describe what a resumed training has to have in common with the run before.

        Returns:
            Names and values of the parts. They are a hash of all training pairs, the batch size, the seed and the
            grouping by length.
        """
        digest = hashlib.sha256()
        for pair in self._pairs_of("train").rows:
            before = [*(pair.source_ids or ()), *pair.prompt_ids]
            digest.update(array("q", [len(before), *before, *pair.target_ids]).tobytes())
        return {
            "training examples": digest.hexdigest()[:16],
            "batch_size": self.batch_size,
            "data seed": self.seed,
            "group_by_length": self.group_by_length,
        }

    def val_dataloader(self) -> DataLoader[Any]:
        """Return the batches of the validation split, with pairs for the loss if the module wants them."""
        if not self.validate_loss:
            return self._decoding_loader("validation")
        prompts = self._prompts_of("validation")
        rows = Rows(list(zip(prompts.rows, self._pairs_of("validation").rows, strict=True)))
        return self._loader(rows, prompts, collate_with_pairs)

    def test_dataloader(self) -> DataLoader[Prompt]:
        """Return the batches of the test split."""
        return self._decoding_loader("test")

    def predict_dataloader(self) -> DataLoader[Prompt]:
        """Return the batches of `predict_split`."""
        return self._decoding_loader(self.predict_split)

    def _decoding_loader(self, split: str) -> DataLoader[Prompt]:
        """Return the batches of a split for decoding (see `batches_by_length` and `collate_prompts`)."""
        prompts = self._prompts_of(split)
        return self._loader(prompts, prompts, collate_prompts)

    def _loader(self, rows: Rows[Any], prompts: Rows[Prompt], collate: Callable[..., Any]) -> DataLoader[Any]:
        """Return the batches of this process: together the processes have the batches of a single one.

        A process for which there is none gets a batch without a row, so that all run the same hooks: Lightning stops a
        process that has no batch, while the others wait for it.
        """
        pad_token_id = pad_token_id_of(self.connected_tokenizer())
        collate = partial(collate, pad_token_id=pad_token_id, padding_side=self.template.padding_side)
        world_size, rank = (1, 0) if self.trainer is None else (self.trainer.world_size, self.trainer.global_rank)
        order = batches_by_length([len(prompt.input_ids) for prompt in prompts.rows], self.batch_size)
        if rank * self.batch_size >= len(rows):
            order, world_size, rank = order[:1], 1, 0
            collate = partial(collate_nothing, collate=collate)
        return DataLoader(
            rows,
            batch_size=self.batch_size,
            sampler=BatchesInTurn(rows, order, self.batch_size, world_size, rank),
            num_workers=self.num_workers,
            collate_fn=collate,
        )

    def connected_tokenizer(self) -> PreTrainedTokenizerBase:
        """Get the tokenizer.

        Returns:
            The tokenizer of the LightningModule, or that given to `connect`.

        Raises:
            RunError: The data module is not connected to one.
        """
        if self.tokenizer is None:
            raise RunError(
                f"{type(self).__name__} has no tokenizer: run it in a Trainer whose LightningModule has one, "
                "or call connect(tokenizer) first"
            )
        return self.tokenizer

    def _prompts_of(self, split: str) -> Rows[Prompt]:
        """Encode the prompts of a split once; count and report the ones that had to be cut."""
        if split in self._prompts:
            return self._prompts[split]
        tokenizer = self.connected_tokenizer()
        prompts, cut, longest = [], 0, 0
        for position, example in enumerate(self.examples(split)):
            input_ids, was_cut = self.template.encode(example.source, tokenizer, self.prompt_limit_tokens)
            prompts.append(Prompt(example, array("i", input_ids), position))  # a large split fits in memory
            if was_cut:
                cut, longest = cut + 1, max(longest, len(self.template.encode(example.source, tokenizer)[0]))
        self.cut[split] = cut
        option = "Raise --data.max_prompt_tokens" if self.max_prompt_tokens else "Lower --model.max_new_tokens"
        _report_cut(cut, len(prompts), f"{split} prompts", self.prompt_limit_tokens, longest, option)
        self._prompts[split] = Rows(prompts)
        return self._prompts[split]

    def _pairs_of(self, split: str) -> Rows[Pair]:
        """Make the pairs of a split once: all references for training, the first one of each example else.

        With `targets`, the texts that were predicted stand for the references.
        """
        if split in self._pairs:
            return self._pairs[split]
        tokenizer = self.connected_tokenizer()
        prompts = self._prompts_of(split).rows
        pairs, cut, longest = [], 0, 0
        for prompt, texts in zip(prompts, self.target_texts([each.example for each in prompts]), strict=True):
            for reference in texts[: None if split == "train" else 1]:
                target_ids, was_cut = self.template.encode_target(reference, tokenizer, self.target_limit_tokens)
                pairs.append(self.template.pair(prompt.input_ids, array("i", target_ids), prompt.example.id))
                if was_cut:
                    cut, longest = cut + 1, max(longest, len(self.template.encode_target(reference, tokenizer)[0]))
        self.cut_references[split] = cut
        option = "Raise --model.max_new_tokens"
        _report_cut(cut, len(pairs), f"{split} references", self.target_limit_tokens, longest, option)
        self._pairs[split] = Rows(pairs)
        return self._pairs[split]


def _report_cut(cut: int, total: int, what: str, limit_tokens: int | None, longest: int, option: str) -> None:
    if cut:
        rank_zero_warn(
            f"{cut} of {total} {what} were cut to {limit_tokens} tokens. The longest has {longest}. {option} to keep "
            "more of them.",
            category=UserWarning,
        )


def _check_split(split: str) -> None:
    if split not in SPLITS:
        raise UserError(f"No split {split!r}: expected one of {', '.join(SPLITS)}")


def _check_at_least(name: str, value: int | None, smallest: int) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < smallest):
        raise UserError(f"{name}={value!r}: expected a whole number, {smallest} or more")
