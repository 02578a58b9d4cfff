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
    text = " ".join(str(error).split())
    sentences = [sentence for sentence in re.split(r"(?<=[.!?:])\s+", text) if not _ADVICE.search(sentence)]
    said = " ".join(sentences)[:_LENGTH].rstrip(" .:;,")
    return f"{type(error).__name__}: {said}" if said else type(error).__name__
