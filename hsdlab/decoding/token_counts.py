"""Which tokens a tokenizer makes of some texts, the most frequent first: the vocabulary of drafts and of checks.

FR-Spec (Zhao et al. 2025, arXiv 2502.14856) drafts with the most frequent tokens of a corpus only.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from transformers import PreTrainedTokenizerBase

from hsdlab.errors import UserError
from hsdlab.program import typed

COMMAND = "count_tokens"
"""The command that writes the file."""


@dataclass(frozen=True)
class TokenCounts:
    """The tokens of some texts, the most frequent first.

    Its file has a line of JSON for each: the token's id, the token as the tokenizer writes it, and how often it occurs.
    The tokens themselves tell whether a file was made with another tokenizer.

    Attributes:
        ids: Token ids, each once; at least one.
        tokens: The tokens, in the same order.
        counts: How often each occurs, likewise.
    """

    ids: tuple[int, ...]
    tokens: tuple[str, ...]
    counts: tuple[int, ...]

    @classmethod
    def most_common(cls, counted: Mapping[int, int], size: int, tokenizer: PreTrainedTokenizerBase) -> Self:
        """Take the most frequent tokens.

        Args:
            counted: How often each token id occurs; not empty.
            size: The most tokens. Of two that occur equally often, the one with the lower id comes first.
            tokenizer: Names the tokens.

        Returns:
            As many as ``size``, or all where there are fewer.
        """
        ids, counts = zip(*sorted(counted.items(), key=lambda pair: (-pair[1], pair[0]))[:size], strict=True)
        return cls(ids, _tokens(ids, tokenizer), counts)

    def text(self) -> str:
        """Write the content of the file.

        Returns:
            A line for each token.
        """
        rows = zip(self.ids, self.tokens, self.counts, strict=True)
        return "".join(json.dumps({"id": each, "token": token, "count": count}) + "\n" for each, token, count in rows)

    @classmethod
    def load(cls, path: str | Path, option: str) -> Self:
        """Read a file.

        Args:
            path: The file.
            option: Which option names it, for the messages.

        Returns:
            Its tokens.

        Raises:
            FileNotFoundError: There is no such file.
            UserError: It is not one of token counts, or names a token twice.
        """
        named = f"{option}={str(path)!r}"
        if not Path(path).is_file():
            raise FileNotFoundError(f"{named}: there is no such file. `{typed(COMMAND)}` writes one.")
        try:
            lines = Path(path).read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise UserError(f"{named}: no text in UTF-8; {_expected()}.") from error
        rows: dict[int, tuple[int, str, int]] = {}
        for number, line in enumerate(lines, start=1):
            row = _row(line)
            if row is None:
                raise UserError(f"{named}, line {number}: {_expected()}.")
            if row[0] in rows:
                raise UserError(f"{named}, line {number}: the token {row[0]} is there twice.")
            rows[row[0]] = row
        if not rows:
            raise UserError(f"{named}: the file is empty; {_expected()}.")
        ids, tokens, counts = zip(*rows.values(), strict=True)
        return cls(ids, tokens, counts)

    def check_vocabulary(self, named: str, size: int) -> None:
        """Refuse ids that a model does not have.

        Args:
            named: The option and the file, for the message.
            size: Tokens of the model.

        Raises:
            UserError: There is one.
        """
        if max(self.ids) >= size:
            raise UserError(f"{named}: holds the id {max(self.ids)}; this model has {size}. {_how()}")

    def check_tokenizer(self, named: str, tokenizer: PreTrainedTokenizerBase) -> None:
        """Refuse ids that are other tokens for a tokenizer.

        Args:
            named: The option and the file, for the message.
            tokenizer: That of the model.

        Raises:
            UserError: There is one.
        """
        for each, token, own in zip(self.ids, self.tokens, _tokens(self.ids, tokenizer), strict=True):
            if token != own:
                raise UserError(f"{named}: the id {each} is the token {token!r} there, and {own!r} here. {_how()}")


def _tokens(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    return tuple(map(str, tokenizer.convert_ids_to_tokens(list(ids))))


def _how() -> str:
    return f"It was counted with another tokenizer: `{typed(COMMAND)}` counts with the model's own."


def _expected() -> str:
    line = '{"id": 28, "token": ".", "count": 1042}'
    return f"expected a line such as {line} for each token, as `{typed(COMMAND)}` writes it"


def _row(line: str) -> tuple[int, str, int] | None:
    """Return the id, the token and the count of a line; None where it is none."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    if not isinstance(row, dict) or not isinstance(row.get("token"), str):
        return None
    if not all(type(row.get(name)) is int and row[name] >= 0 for name in ("id", "count")):
        return None
    return row["id"], row["token"], row["count"]
