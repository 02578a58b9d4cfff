"""The cells of a bench: which there are, and the batches of prompts that each decodes."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from hsdlab.data import GenerationDataModule, PromptTemplate
from hsdlab.data.batches import Prompt, collate_prompts, pad_token_id_of
from hsdlab.data.source_target import SourceAndTarget, decoder_start
from hsdlab.decoding.families import context_length, decoder_parts, plain_model
from hsdlab.errors import UserError
from hsdlab.models.quantization import is_quantised
from hsdlab.modules import DecodeModule

CellDtype = Literal["float32", "bfloat16", "float16", "float64"]


@dataclass(frozen=True)
class BenchOptions:
    """What a bench measures. Each combination of the four lists is a cell.

    Attributes:
        prompts: Number of batches of prompts in a cell.
        new_tokens: Tokens to decode from each prompt, 2 or more.
        repeats: How often each way to decode decodes each batch, after one round of warm-up.
        batch_sizes: Sequences per batch.
        beams: Beams per sequence; 1 decodes greedily.
        dtypes: Dtypes of the weights, such as "bfloat16"; none for the dtype in which the model was loaded.
        prompt_tokens: Lengths of the prompts, tokens; none for the prompts as they are.
        removed_layers: Whether to time, for each layer schedule, plain `generate` with only the schedule's layers.
        assistant_early_exit: The exit layer of transformers' `assistant_early_exit`; None leaves it out.
    """

    prompts: int = 4
    new_tokens: int = 50
    repeats: int = 5
    batch_sizes: Sequence[int] = (1,)
    beams: Sequence[int] = (1,)
    dtypes: Sequence[CellDtype] = ()
    prompt_tokens: Sequence[int] = ()
    removed_layers: bool = False
    assistant_early_exit: int | None = None

    def check(self, examples: int) -> None:
        """Refuse what can be refused before a model is loaded.

        Args:
            examples: Number of examples in the test split.

        Raises:
            UserError: An option is out of its range; the message names it.
        """
        if self.new_tokens < 2:
            raise UserError(f"new_tokens is {self.new_tokens}; expected at least 2: the first needs no decode step.")
        if self.repeats < 1:
            raise UserError(f"repeats is {self.repeats}; expected at least 1.")
        for name, values in (("batch_sizes", self.batch_sizes), ("beams", self.beams)):
            if not values:
                raise UserError(f"{name} is empty; expected one number or more.")
        numbers = {"batch_sizes": self.batch_sizes, "beams": self.beams, "prompt_tokens": self.prompt_tokens}
        for name, values in numbers.items():
            if min(values, default=1) < 1:
                raise UserError(f"{name} holds {min(values)}; expected whole numbers from 1 on.")
        for dtype in self.dtypes:
            if dtype not in get_args(CellDtype):
                raise UserError(f"dtypes holds {dtype!r}; expected {', '.join(get_args(CellDtype))}.")
        for name, each in (*numbers.items(), ("dtypes", self.dtypes)):
            if len(set(each)) < len(each):
                raise UserError(f"{name}={list(each)} holds a value twice; expected each once.")
        if self.assistant_early_exit is not None and self.assistant_early_exit < 1:
            raise UserError(
                f"assistant_early_exit is {self.assistant_early_exit}; expected the number of a layer, from 1."
            )
        batch_size = max(self.batch_sizes)
        if examples < self.prompts * batch_size:
            of_batches = "" if batch_size == 1 else f" batches of {batch_size}"
            needed = "" if batch_size == 1 else f", not {self.prompts * batch_size}. Lower prompts or batch_sizes"
            raise UserError(
                f"prompts={self.prompts}{of_batches}: the test split of the data holds only {examples} "
                f"examples{needed}."
            )


@dataclass(frozen=True)
class Batch:
    """The prompts of one batch, or the sources of an encoder-decoder.

    Attributes:
        input_ids: LongTensor [rows, length], left-padded; sources are padded on the right.
        attention_mask: LongTensor [rows, length], 1 for tokens and 0 for padding.
        decoder_prompt_tokens: With how many tokens an encoder-decoder begins to decode; None for a decoder-only model.
    """

    input_ids: Tensor
    attention_mask: Tensor
    decoder_prompt_tokens: int | None = None

    @property
    def prompt_tokens(self) -> int:
        """How many tokens of each decoded sequence are not new."""
        return self.input_ids.shape[1] if self.decoder_prompt_tokens is None else self.decoder_prompt_tokens

    @property
    def lengths(self) -> list[int]:
        """The length of each prompt, tokens."""
        return self.attention_mask.sum(dim=1).tolist()

    def prompt(self, row: int) -> list[int]:
        """Take a prompt out of the batch.

        Args:
            row: Of the prompt.

        Returns:
            Its token ids, without padding.
        """
        return self.input_ids[row][self.attention_mask[row] == 1].tolist()

    def to(self, device: torch.device) -> "Batch":
        """Copy the batch to another device.

        Args:
            device: Where the model is.

        Returns:
            The batch there.
        """
        return replace(self, input_ids=self.input_ids.to(device), attention_mask=self.attention_mask.to(device))


@dataclass(frozen=True)
class Cell:
    """What one cell decodes.

    Attributes:
        batches: The same in every round; of one size.
        num_beams: Beams per sequence; 1 decodes greedily.
        dtype: Of the weights; None for the model's own.
    """

    batches: Sequence[Batch]
    num_beams: int = 1
    dtype: str | None = None


def bench_cells(module: DecodeModule, datamodule: GenerationDataModule, options: BenchOptions) -> list[Cell]:
    """Make the cells, with prompts from the first examples of the test split.

    For prompts of a given length, a longer source is cut at its end, as always. Before a shorter prompt come those of
    the examples that follow, cut at the front. A token that begins every text (BOS) stays at the front.

    Args:
        module: Gives the tokenizer, and the context length, number of layers and vocabulary of its model.
        datamodule: Gives the examples and the template. Prompts as they are are cut to its max_prompt_tokens; without
            one, so that the new tokens fit the context.
        options: Which cells there are.

    Returns:
        The cells, of which dtypes vary slowest, then lengths of prompts, batch sizes, and beams.

    Raises:
        UserError: A cell does not fit the model's context or vocabulary, the exit layer does not fit the model, or the
            split holds too few examples.
    """
    parts, context = decoder_parts(module.model), context_length(decoder_parts(module.model).model)
    _check_fits(options, context, parts.num_layers, parts.vocabulary_size)
    datamodule.prepare_data()
    examples = datamodule.examples("test")
    options.check(len(examples))
    start = decoder_start(module.model)
    taken = options.new_tokens if start is None else 0  # of an encoder-decoder's context for sources
    room = None if context is None else context - taken
    template = datamodule.template_for(start)
    pad_token_id = pad_token_id_of(module.tokenizer)

    @cache
    def encoded(index: int, limit: int | None) -> list[int]:
        return template.encode(examples[index % len(examples)].source, module.tokenizer, limit)[0]

    cells = []
    for dtype in options.dtypes or (None,):
        for length in options.prompt_tokens or (None,):
            for batch_size in options.batch_sizes:
                prompts = []
                for index in range(options.prompts * batch_size):
                    if length is None:
                        token_ids = encoded(index, datamodule.max_prompt_tokens or room)
                    else:
                        token_ids = _of_length(encoded, index, length, module.tokenizer.bos_token_id)
                    prompts.append(Prompt(examples[index], token_ids))
                batches = [
                    _batch(prompts[first : first + batch_size], pad_token_id, template)
                    for first in range(0, len(prompts), batch_size)
                ]
                cells += [Cell(batches, num_beams, dtype) for num_beams in options.beams]
    return cells


def _check_fits(options: BenchOptions, context: int | None, num_layers: int, vocabulary: int) -> None:
    """Refuse what does not fit the model."""
    longest = max(options.prompt_tokens, default=1)
    if context is not None and longest + options.new_tokens > context:
        given = f"prompt_tokens={longest} with " if options.prompt_tokens else ""
        raise UserError(
            f"{given}new_tokens={options.new_tokens} does not fit the model's context of {context} tokens; give fewer."
        )
    if max(options.beams) > vocabulary:
        raise UserError(f"beams={max(options.beams)}: expected at most {vocabulary}; the model has no more tokens.")
    exit_layer = options.assistant_early_exit
    if exit_layer is not None and exit_layer >= num_layers:
        raise UserError(
            f"assistant_early_exit={exit_layer}: expected at most {num_layers - 1}; the model has {num_layers} layers."
        )


def _of_length(encoded: Callable[[int, int], list[int]], index: int, length: int, bos: int | None) -> list[int]:
    """Return a prompt of an exact length.

    Args:
        encoded: Gives the prompt of an example, of at most so many tokens.
        index: Of the example with which the prompt ends.
        length: Tokens of the prompt.
        bos: The token that begins a text, for some tokenizers.
    """
    try:
        token_ids = encoded(index, length)
        begin = [bos] if bos is not None and token_ids[0] == bos else []
        token_ids = token_ids[len(begin) :]
        while len(begin) + len(token_ids) < length:
            index += 1
            before = encoded(index, length)[len(begin) :]
            missing = length - len(begin) - len(token_ids)
            token_ids = [*before[-missing:], *token_ids]
    except UserError as error:
        raise UserError(f"prompt_tokens={length}: {error}") from error
    return begin + token_ids


def _batch(prompts: Sequence[Prompt], pad_token_id: int, template: PromptTemplate | SourceAndTarget) -> Batch:
    collated = collate_prompts(prompts, pad_token_id, template.padding_side)
    decoder_prompt_tokens = 1 if isinstance(template, SourceAndTarget) else None
    return Batch(collated["input_ids"], collated["attention_mask"], decoder_prompt_tokens)


def in_dtype_of(cell: Cell, model: nn.Module) -> nn.Module:
    """Return the model in the dtype of a cell.

    Args:
        cell: Its dtype is None for the model's own.
        model: As it was loaded; it is not changed.

    Returns:
        The model itself if it has the dtype, else a copy. As in loading, buffers that no checkpoint holds (rotary
        frequencies) keep their precision.

    Raises:
        UserError: The weights are quantised, and would have to be cast.
    """
    wanted = None if cell.dtype is None else getattr(torch, cell.dtype)
    if wanted in (None, plain_model(model).dtype):
        return model
    if is_quantised(model):
        raise UserError(
            f"dtypes holds {cell.dtype}, but the model has quantised weights, which cannot be cast: leave dtypes out, "
            "and measure each --model.dtype in a run of its own."
        )
    cast = copy.deepcopy(model)
    stored = {tensor.data_ptr() for tensor in cast.state_dict().values()}
    for tensor in (*cast.parameters(), *cast.buffers()):
        if tensor.is_floating_point() and tensor.data_ptr() in stored:
            tensor.data = tensor.data.to(wanted)
    plain_model(cast).config.dtype = wanted
    return cast
