"""What a library's error tells the user, without its advice to disable a safeguard."""

import re

_ADVICE = re.compile(r"trust_remote_code|weights_only|allow_pickle|torch\.load|add_safe_globals|pip install|https?://")
_LENGTH = 240


def reason(error: BaseException) -> str:
    """Shorten a library's error to one line for a message of ours.

    Args:
        error: Of any class.

    Returns:
        The error's class and its message as in `without_advice`, at most 240 characters of it; the class alone where
        nothing of the message remains.

    Example:
        >>> reason(ValueError("The folder has code. Please pass trust_remote_code=True to run it."))
        'ValueError: The folder has code'
    """
    said = without_advice(str(error), _LENGTH)
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def without_advice(text: str, longest: int) -> str:
    """Remove sentences with advice to disable a safeguard, to install a package or to open a link.

    Args:
        text: With any line breaks.
        longest: Number of characters to keep.

    Returns:
        The other sentences on one line, without the final punctuation; empty where there is none.
    """
    sentences = re.split(r"(?<=[.!?:])\s+", " ".join(text.split()))
    return " ".join(each for each in sentences if not _ADVICE.search(each))[:longest].rstrip(" .:;,")
