"""What a library's error tells the user, without its advice to switch a safeguard off."""

import re

_ADVICE = re.compile(r"trust_remote_code|weights_only|allow_pickle|torch\.load|add_safe_globals|pip install|https?://")
_LENGTH = 240


def reason(error: BaseException) -> str:
    """Return the first sentence of an error's message that gives no advice of this kind, with the error's class.

    Example:
        >>> reason(ValueError("The folder has code. Please pass trust_remote_code=True to run it."))
        'ValueError: The folder has code'
    """
    said = without_advice(str(error), _LENGTH)
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def without_advice(text: str, longest: int) -> str:
    """Return a text on one line, without the sentences that give such advice, cut at a length."""
    sentences = re.split(r"(?<=[.!?:])\s+", " ".join(text.split()))
    return " ".join(each for each in sentences if not _ADVICE.search(each))[:longest].rstrip(" .:;,")
