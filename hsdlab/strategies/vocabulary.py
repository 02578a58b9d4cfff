"""The option that names some tokens of a vocabulary, for which a head is computed: of drafts, and of checks."""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from hsdlab.decoding.families import DecoderParts
from hsdlab.decoding.token_counts import COMMAND, TokenCounts
from hsdlab.errors import UserError
from hsdlab.program import typed


@dataclass(frozen=True)
class VocabularyOption:
    """Such an option of a strategy, and its value.

    Attributes:
        strategy: The strategy's class, for the messages.
        name: The name of the option, likewise.
        value: How many tokens with the lowest ids, a file of token counts, or None for all tokens.
        fewest: The fewest tokens that the option can name.
    """

    strategy: str
    name: str
    value: int | str | None
    fewest: int = 1

    def check(self) -> None:
        """Refuse what is no value of such an option.

        Raises:
            UserError: The value is something else, or too small a number.
        """
        value = self.value
        is_number = isinstance(value, int) and not isinstance(value, bool) and value >= self.fewest
        if not (value is None or isinstance(value, str) or is_number):
            raise UserError(
                f"{self.strategy}: {self.name}={value!r}; expected a whole number, {self.fewest} or more, or a file of "
                f"token counts, as `{typed(COMMAND)}` writes it."
            )

    def ids(self, parts: DecoderParts) -> Tensor | None:
        """Find the tokens.

        Args:
            parts: The model's head.

        Returns:
            Their ids, LongTensor [n] on the CPU; None for all.

        Raises:
            UserError: The model does not have them, or they are too few.
            UnsupportedModelError: The rows of these tokens cannot be taken from the model's head.
        """
        value = self.value
        if value is None:
            return None
        parts.check_head_rows()
        named = f"{self.name}={value!r}"
        if isinstance(value, int):
            if value > parts.vocabulary_size:
                raise UserError(f"{self.strategy}: {named}; this model has {parts.vocabulary_size} tokens.")
            return torch.arange(value)
        counts = TokenCounts.load(value, self.name)
        counts.check_vocabulary(named, parts.vocabulary_size)
        if len(counts.ids) < self.fewest:
            raise UserError(f"{named}: holds {len(counts.ids)} tokens; expected {self.fewest} or more.")
        return torch.tensor(counts.ids)

    def check_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Refuse a file that was counted with another tokenizer.

        Args:
            tokenizer: That of the model.

        Raises:
            UserError: It was.
        """
        if isinstance(self.value, str):
            named = f"{self.name}={self.value!r}"
            TokenCounts.load(self.value, self.name).check_tokenizer(named, tokenizer)
