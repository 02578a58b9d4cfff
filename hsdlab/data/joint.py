"""Where a prompt and the text after it meet: token ids that together are those of the joint text.

Tokenizers differ at the ends of a text. Some add special tokens before it (BOS, [CLS]), some after it (EOS, [SEP]).
Some put a space in front of every text (SentencePiece's "▁", ByteLevel's `add_prefix_space`). Some drop or merge white
space. A prompt needs what stands before a text and nothing that stands after it; what follows the prompt needs neither.
"""

import itertools
import re
from functools import lru_cache

from transformers import PreTrainedTokenizerBase

from hsdlab.errors import UserError


def prompt_ids(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Encode a text that will be continued: after the special tokens that the tokenizer puts before a text.

    Args:
        text: The text. If it spells out those special tokens itself, they are not added.
        tokenizer: Its settings are left as they are.

    Returns:
        The token ids, without the special tokens that the tokenizer puts after a text.

    Raises:
        UserError: The tokenizer encodes a text differently when it adds its special tokens.
    """
    text_ids, (opening, _) = bare_ids(text, tokenizer), special_ids(tokenizer)
    return text_ids if text_ids[: len(opening)] == opening else [*opening, *text_ids]


def following_ids(before: str, text: str, tokenizer: PreTrainedTokenizerBase, target: bool = False) -> list[int]:
    """Encode a text where it stands directly after another text.

    Args:
        before: What stands before.
        text: What follows, without anything between.
        tokenizer: Its settings are left as they are.
        target: Encode the texts as targets of an encoder-decoder model.

    Returns:
        The token ids that the tokenizer adds to those of `before` when it encodes both in one piece. Where it would
        merge the last token of `before` with the first of `text` (a space at the end of "Summary: " with "The"), the
        ids of `text` at the beginning of a line or after a bracket, or else by itself.
    """
    last_line = before[before.rstrip().rfind("\n") + 1 :]
    for anchor in (last_line, "\n", "("):
        anchor_ids, joint_ids = bare_ids(anchor, tokenizer, target), bare_ids(anchor + text, tokenizer, target)
        if joint_ids[: len(anchor_ids)] == anchor_ids:
            return joint_ids[len(anchor_ids) :]
    return bare_ids(text, tokenizer, target)


def plain_ids(before: str, text: str, tokenizer: PreTrainedTokenizerBase, target: bool = False) -> list[int]:
    """Encode a text after another, with the names of special tokens in it read as plain text.

    Each name is broken after its first character; the tokenizer sees no name, and the ids still spell the text. (Its
    own `split_special_tokens` is not enough: the pieces of a Unigram model hold the names, too.)

    Args:
        before: What stands before.
        text: What follows, without anything between.
        tokenizer: Its settings are left as they are.
        target: Encode the texts as targets of an encoder-decoder model.

    Returns:
        The token ids of `text`, none of them of a special token.
    """
    names = "|".join(map(re.escape, special_tokens(tokenizer)))
    breaks = [match.start() + 1 for match in re.finditer(names, text)] if names else []
    token_ids: list[int] = []
    for start, end in itertools.pairwise([0, *breaks, len(text)]):
        token_ids += following_ids(before, text[start:end], tokenizer, target)
        before = text[start:end]
    return token_ids


def bare_ids(text: str, tokenizer: PreTrainedTokenizerBase, target: bool = False) -> list[int]:
    """Encode a text without the special tokens that the tokenizer adds around it.

    Args:
        text: The text. Names of special tokens in it are read as special tokens.
        tokenizer: Its settings are left as they are.
        target: Encode the text as a target of an encoder-decoder model: Marian has a vocabulary for each language.

    Returns:
        The token ids, of any length.
    """
    return _ids(text, tokenizer, target, add_special_tokens=False)


def special_ids(tokenizer: PreTrainedTokenizerBase, target: bool = False) -> tuple[list[int], list[int]]:
    """Find the special tokens that the tokenizer puts around a text, seen with one that holds none.

    Args:
        tokenizer: Its settings are left as they are.
        target: Those around a target of an encoder-decoder model.

    Returns:
        Their ids before the text, and after it.

    Raises:
        UserError: The tokenizer encodes a text differently when it adds its special tokens.
    """
    text = "a"
    text_ids = bare_ids(text, tokenizer, target)
    whole = _ids(text, tokenizer, target, add_special_tokens=True)
    for start in range(len(whole) - len(text_ids) + 1):
        if whole[start : start + len(text_ids)] == text_ids:
            return whole[:start], whole[start + len(text_ids) :]
    raise UserError(
        f"The tokenizer makes {text_ids} of {text!r}, but {whole} with its special tokens: expected the same ids with "
        "others around them. Take a tokenizer that adds its special tokens at the ends of a text."
    )


def _ids(text: str, tokenizer: PreTrainedTokenizerBase, target: bool, add_special_tokens: bool) -> list[int]:
    # verbose=False: a text longer than the tokenizer expects is cut and reported by the data module
    given = {"text_target": text} if target else {"text": text}
    return list(tokenizer(**given, add_special_tokens=add_special_tokens, verbose=False).input_ids)


def names_special_token(text: str, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Say whether the tokenizer would read some of a text as special tokens.

    Args:
        text: The text.
        tokenizer: Its special tokens are looked for.

    Returns:
        True where the text contains the name of one.
    """
    return any(name in text for name in special_tokens(tokenizer))


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """List the special tokens of a tokenizer.

    Args:
        tokenizer: Its added special tokens count too.

    Returns:
        Each as it is written in a text, "<|endoftext|>" for example, in no particular order.
    """
    return _special_tokens(tokenizer, len(tokenizer))


@lru_cache(maxsize=4)
def _special_tokens(tokenizer: PreTrainedTokenizerBase, size: int) -> tuple[str, ...]:
    """`size` tells a tokenizer that has got more tokens apart from what it was before."""
    added = (token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
    return tuple({*added, *tokenizer.all_special_tokens})
