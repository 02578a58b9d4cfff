"""Source and target of an encoder-decoder model: two texts, each with the tokens that the tokenizer puts around it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from transformers import PreTrainedTokenizerBase

from hsdlab.data.batches import PaddingSide, Pair
from hsdlab.data.joint import bare_ids, names_special_token, plain_ids, special_ids
from hsdlab.errors import UserError

NO_LIMIT = 1_000_000
"""From here on a tokenizer's `model_max_length` says that it knows none."""


@dataclass(frozen=True)
class SourceAndTarget:
    """How an encoder-decoder model reads a source and writes a target. It takes the place of a prompt template.

    Attributes:
        decoder_start: Id of the token with which decoding begins. It is the decoder's prompt.
        prefix: Text before each source, such as "summarize: " for T5.
        padding_side: Of the sources in a batch. The encoders of BART and its kin count positions with the padding.
    """

    decoder_start: int
    prefix: str = ""
    padding_side: ClassVar[PaddingSide] = "right"

    def check(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Refuse nothing: there is no template that could leave the source out.

        Args:
            tokenizer: Of the model; not used.
        """

    def encode(
        self, source: str, tokenizer: PreTrainedTokenizerBase, max_tokens: int | None = None
    ) -> tuple[list[int], bool]:
        """Return the token ids of the prefix and the source, cut at their end until they fit.

        The tokenizer's special tokens stand around them, such as the end of sequence of T5. The names of special tokens
        in the source are read as plain text; in the prefix they are special tokens.

        Args:
            source: The source text.
            tokenizer: Any tokenizer; its settings are left as they are.
            max_tokens: The most ids to return, special ones included; no limit by default.

        Returns:
            The token ids, and whether the source was cut.

        Raises:
            UserError: The source has no token, or `max_tokens` leaves no room for one.
        """
        opening, closing = special_ids(tokenizer)
        if names_special_token(source, tokenizer):
            own = [*bare_ids(self.prefix, tokenizer), *plain_ids(self.prefix, source, tokenizer)]
        else:
            own = bare_ids(self.prefix + source, tokenizer)
        if not own:
            raise UserError(f"The source {source[:40]!r} has no token: there is nothing to read")
        if max_tokens is None or len(own) + len(opening) + len(closing) <= max_tokens:
            return [*opening, *own, *closing], False
        room = max_tokens - len(opening) - len(closing)
        if room < 1:
            raise UserError(
                f"The special tokens around a source are {len(opening) + len(closing)}, and {max_tokens} tokens are "
                "allowed: raise max_prompt_tokens"
            )
        return [*opening, *own[:room], *closing], True

    def encode_target(
        self, reference: str, tokenizer: PreTrainedTokenizerBase, max_tokens: int | None = None
    ) -> tuple[list[int], bool]:
        """Return the token ids that the decoder is to write: the reference as the tokenizer encodes a target.

        The special tokens that the tokenizer puts before a target are among them (BART's <s>), unless they are the
        token with which decoding begins. The end of sequence is the last one; a tokenizer's special tokens after it
        (mBART's language) are left out, since decoding ends there.

        Args:
            reference: The text. Names of special tokens in it are read as plain text.
            tokenizer: Any tokenizer with an end-of-sequence token.
            max_tokens: The most ids to return; no limit by default.

        Returns:
            The token ids, and whether they were cut (then the end of sequence is not among them).

        Raises:
            UserError: The tokenizer has no end-of-sequence token.
        """
        end = tokenizer.eos_token_id
        if end is None:
            raise UserError("The tokenizer has no end-of-sequence token to be learned: set tokenizer.eos_token")
        opening, closing = special_ids(tokenizer, target=True)
        if opening == [self.decoder_start]:
            opening = []
        before_end = closing[: closing.index(end)] if end in closing else closing
        text = reference.strip().removesuffix(tokenizer.eos_token).rstrip()
        token_ids = [*opening, *plain_ids("", text, tokenizer, target=True), *before_end, end]
        return token_ids[:max_tokens], max_tokens is not None and len(token_ids) > max_tokens

    def pair(self, source_ids: Sequence[int], target_ids: Sequence[int], example_id: str = "") -> Pair:
        """Put a source and a target together.

        Args:
            source_ids: Of `encode`.
            target_ids: Of `encode_target`.
            example_id: Of the example.

        Returns:
            The pair. Its prompt is the decoder's.
        """
        return Pair([self.decoder_start], target_ids, example_id, source_ids)


def decoder_start(model: Any) -> int | None:
    """Find the token with which a model's `generate` begins to decode.

    Args:
        model: A transformers model, or a peft model around one.

    Returns:
        Its id; None for a decoder-only model.

    Raises:
        UserError: An encoder-decoder whose generation config names none.
    """
    if not getattr(model.config, "is_encoder_decoder", False):
        return None
    config = model.generation_config
    start = config.bos_token_id if config.decoder_start_token_id is None else config.decoder_start_token_id
    if start is None:
        raise UserError(
            f"{type(model).__name__} is an encoder-decoder, and its generation_config.json names no "
            "decoder_start_token_id: set it to the token with which its decoder begins"
        )
    return int(start)


def context_tokens(config: Any) -> int | None:
    """Read from a model's config how many tokens it has positions for.

    Args:
        config: Of any language model.

    Returns:
        The number, of an encoder-decoder that of its decoder; None for a model without a limit, such as T5.
    """
    if getattr(config, "is_encoder_decoder", False):
        config = config.get_text_config(decoder=True)
    return getattr(config, "max_position_embeddings", None)
