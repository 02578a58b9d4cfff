"""Prompt templates: text to token ids, cut so that the end of the template stays."""

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from hsdlab.errors import UserError

PLACEHOLDER = "{source}"


@dataclass(frozen=True)
class PromptTemplate:
    r"""A prompt around a source text.

    Attributes:
        text: The prompt; `{source}` stands for the source text.
        chat: Wrap the prompt as a user's message in the chat template, followed by the assistant's header.

    Raises:
        UserError: `text` does not hold `{source}` exactly once.

    >>> PromptTemplate("Summarise: {source}\nSummary:").fill("A long text.")
    'Summarise: A long text.\nSummary:'
    """

    text: str
    chat: bool = False

    def __post_init__(self) -> None:
        if self.text.count(PLACEHOLDER) != 1:
            raise UserError(
                f"prompt={self.text!r} holds {PLACEHOLDER} {self.text.count(PLACEHOLDER)} times: "
                "expected once, where the source text goes"
            )

    def fill(self, source: str) -> str:
        """Return the prompt for `source`, without the chat template."""
        return self.text.replace(PLACEHOLDER, source)

    def encode(
        self, source: str, tokenizer: PreTrainedTokenizerBase, max_tokens: int | None = None
    ) -> tuple[list[int], bool]:
        """Return the token ids of the prompt, with the source cut at its end until they fit.

        The whole prompt is encoded in one piece, with the special tokens that the tokenizer adds by default
        (a chat template writes its own).

        Args:
            source: The source text.
            tokenizer: Any tokenizer; its settings are left as they are.
            max_tokens: The most ids to return; no limit by default.

        Returns:
            The token ids, and whether the source was cut.

        Raises:
            UserError: The template alone is longer than `max_tokens`, or the tokenizer has no chat template.
        """
        token_ids = self._encode_whole(source, tokenizer)
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

        They are encoded apart from the prompt, since decoding begins after its last token. A space goes before the
        reference, unless the template ends in white space or in the chat template's header.

        Args:
            reference: The text.
            tokenizer: Any tokenizer with an end-of-sequence token.
            max_tokens: The most ids to return; no limit by default.

        Returns:
            The token ids, and whether they were cut (then the end of sequence is not among them).

        Raises:
            UserError: The tokenizer has no end-of-sequence token.
        """
        if tokenizer.eos_token_id is None:
            raise UserError("The tokenizer has no end-of-sequence token to be learned: set tokenizer.eos_token")
        space = "" if self.chat or self.text[-1].isspace() else " "
        text = space + reference.strip()
        token_ids = [*tokenizer(text, add_special_tokens=False, verbose=False).input_ids, tokenizer.eos_token_id]
        return token_ids[:max_tokens], max_tokens is not None and len(token_ids) > max_tokens

    def _encode_whole(self, source: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        text = self.fill(source)
        if self.chat:
            if tokenizer.chat_template is None:
                raise UserError("chat=True, but the tokenizer has no chat template: set chat=False or take another")
            message = [{"role": "user", "content": text}]
            text = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
        # verbose=False: a prompt longer than the tokenizer expects is cut and reported by the data module
        return list(tokenizer(text, add_special_tokens=not self.chat, verbose=False).input_ids)


def _places_to_cut(source: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return where to end `source` to keep 0, 1, 2 ... of its tokens (of its characters, if need be)."""
    if not tokenizer.is_fast:
        return list(range(len(source)))
    encoded = tokenizer(source, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return [0, *(end for _, end in encoded.offset_mapping[:-1])]
