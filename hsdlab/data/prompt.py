"""Prompt templates: text to token ids, cut so that the end of the template stays."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from transformers import PreTrainedTokenizerBase

from hsdlab.data.batches import PaddingSide, Pair
from hsdlab.data.joint import bare_ids, following_ids, names_special_token, plain_ids, prompt_ids, special_tokens
from hsdlab.errors import UserError

PLACEHOLDER = "{source}"
STAND_IN = "Text-7f3a9c52"  # in the place of a source or reference, to see what is written around it


@dataclass(frozen=True)
class PromptTemplate:
    r"""A prompt around a source text.

    Attributes:
        text: The prompt; `{source}` stands for the source text.
        chat: Wrap the prompt as a user's message in the chat template, followed by the assistant's header.
        padding_side: Of the prompts in a batch.

    Raises:
        UserError: `text` does not hold `{source}` exactly once.

    >>> PromptTemplate("Summarise: {source}\nSummary:").fill("A long text.")
    'Summarise: A long text.\nSummary:'
    """

    text: str
    chat: bool = False
    padding_side: ClassVar[PaddingSide] = "left"

    def __post_init__(self) -> None:
        if not isinstance(self.text, str):
            raise UserError(f"prompt={self.text!r}: expected a text with {PLACEHOLDER} in it")
        if self.text.count(PLACEHOLDER) != 1:
            raise UserError(
                f"prompt={self.text!r} holds {PLACEHOLDER} {self.text.count(PLACEHOLDER)} times: "
                "expected once, where the source text goes"
            )

    def check(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Refuse a chat template that leaves the prompt out.

        Args:
            tokenizer: Its chat template is tried, if `chat` is set.

        Raises:
            UserError: The chat template does not write the user's message, is missing or fails.
        """
        if STAND_IN not in self._written(STAND_IN, tokenizer):
            raise UserError(
                "chat=True, but the tokenizer's chat template does not write the user's message: set chat=False or "
                "correct the template"
            )

    def fill(self, source: str) -> str:
        """Put a source text into the template, without the chat template.

        Args:
            source: The source text.

        Returns:
            The prompt. Where the source is the end of the prompt, white space at its end is dropped, since a space goes
            before the text that follows.
        """
        return self.text.replace(PLACEHOLDER, source.rstrip() if self.text.endswith(PLACEHOLDER) else source)

    def encode(
        self, source: str, tokenizer: PreTrainedTokenizerBase, max_tokens: int | None = None
    ) -> tuple[list[int], bool]:
        """Return the token ids of the prompt, with the source cut at its end until they fit.

        The whole prompt is encoded in one piece, after the special tokens that the tokenizer puts before a text (a chat
        template writes its own). Those that it puts after a text are left out, because decoding continues the text. The
        names of special tokens in the source are read as plain text; in the template they are special tokens.

        Args:
            source: The source text.
            tokenizer: Any tokenizer; its settings are left as they are.
            max_tokens: The most ids to return; no limit by default.

        Returns:
            The token ids, and whether the source was cut.

        Raises:
            UserError: The template alone is longer than `max_tokens`, the prompt has no token, or the tokenizer's chat
                template is missing or fails.
        """
        token_ids = self._encode_whole(source, tokenizer)
        if not token_ids:
            raise UserError(f"The prompt for the source {source[:40]!r} has no token: there is nothing to continue")
        if max_tokens is None or len(token_ids) <= max_tokens:
            return token_ids, False
        cuts = _places_to_cut(source, tokenizer)
        keep = len(cuts)
        while len(token_ids) > max_tokens:
            if keep == 0:
                raise UserError(
                    f"The prompt template alone takes {len(token_ids)} tokens, more than the {max_tokens} "
                    "allowed: shorten prompt, raise max_prompt_tokens or lower max_new_tokens"
                )
            keep = max(0, keep - (len(token_ids) - max_tokens))
            token_ids = self._encode_whole(source[: cuts[keep]], tokenizer)
        return token_ids, True

    def encode_target(
        self, reference: str, tokenizer: PreTrainedTokenizerBase, max_tokens: int | None = None
    ) -> tuple[list[int], bool]:
        """Return the token ids that a model is to write after the prompt: the reference and the end of sequence.

        They are what the reference adds to the ids of the prompt (`following_ids`), since decoding begins after the
        prompt's last token. A space goes before the reference, unless the template ends in white space or in a special
        token; after a chat template's header goes what the chat template itself writes there. An end-of-sequence token
        that the reference spells out at its end is not written twice; names of special tokens elsewhere in it are read
        as plain text.

        Args:
            reference: The text.
            tokenizer: Any tokenizer with an end-of-sequence token.
            max_tokens: The most ids to return; no limit by default.

        Returns:
            The token ids, and whether they were cut (then the end of sequence is not among them).

        Raises:
            UserError: The tokenizer has no end-of-sequence token, or its chat template is missing or fails.
        """
        if tokenizer.eos_token_id is None:
            raise UserError("The tokenizer has no end-of-sequence token to be learned: set tokenizer.eos_token")
        text = reference.strip().removesuffix(tokenizer.eos_token).rstrip()
        prompt = self._written(STAND_IN, tokenizer)
        token_ids = [tokenizer.eos_token_id]
        if text:
            text = self._space_after(prompt, tokenizer) + text
            token_ids = [*plain_ids(prompt, text, tokenizer), *token_ids]
        return token_ids[:max_tokens], max_tokens is not None and len(token_ids) > max_tokens

    def pair(self, prompt_ids: Sequence[int], target_ids: Sequence[int], example_id: str = "") -> Pair:
        """Put a prompt and a reference together.

        Args:
            prompt_ids: Of `encode`.
            target_ids: Of `encode_target`.
            example_id: Of the example.

        Returns:
            The pair.
        """
        return Pair(prompt_ids, target_ids, example_id)

    def _encode_whole(self, source: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        begin = bare_ids if self.chat else prompt_ids
        if not names_special_token(source, tokenizer):
            return begin(self._written(source, tokenizer), tokenizer)
        before, _, after = self._written(STAND_IN, tokenizer).partition(STAND_IN)
        return [
            *begin(before, tokenizer),
            *plain_ids(before, source, tokenizer),
            *(following_ids(source, after, tokenizer) if after else ()),
        ]

    def _written(self, source: str, tokenizer: PreTrainedTokenizerBase) -> str:
        """Return the text of the prompt for `source`, in the chat template if there is to be one."""
        if not self.chat:
            return self.fill(source)
        return _in_chat_template([("user", self.fill(source))], tokenizer, add_generation_prompt=True)

    def _space_after(self, prompt: str, tokenizer: PreTrainedTokenizerBase) -> str:
        """Return the white space that goes between the prompt for `STAND_IN` and a reference."""
        if not self.chat:
            return "" if prompt[-1].isspace() or prompt.endswith(special_tokens(tokenizer)) else " "
        messages = [("user", self.fill(STAND_IN)), ("assistant", STAND_IN)]
        try:
            answered = _in_chat_template(messages, tokenizer, add_generation_prompt=False)
        except UserError:  # it takes users' messages only
            return ""
        between = answered.removeprefix(prompt).partition(STAND_IN)[0]
        return between if answered.startswith(prompt) and between.isspace() else ""  # "<think></think>" is not a space


def _in_chat_template(
    messages: list[tuple[str, str]], tokenizer: PreTrainedTokenizerBase, add_generation_prompt: bool
) -> str:
    """Return messages, each its role and content, as the tokenizer's chat template writes them."""
    if tokenizer.chat_template is None:
        raise UserError("chat=True, but the tokenizer has no chat template: set chat=False or take another")
    conversation = [{"role": role, "content": content} for role, content in messages]
    try:
        text = tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=add_generation_prompt)
    except Exception as error:  # the template is a program: it may raise anything
        raise UserError(
            f"chat=True, but the tokenizer's chat template fails on {' and '.join(role for role, _ in messages)} "
            f"messages ({type(error).__name__}: {error}): set chat=False or correct the template"
        ) from error
    return str(text)


def _places_to_cut(source: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return where to end `source` to keep 0, 1, 2 ... of its tokens (of its characters, if need be)."""
    if not tokenizer.is_fast:
        return list(range(len(source)))
    encoded = tokenizer(source, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return [0, *(end for _, end in encoded.offset_mapping[:-1])]
