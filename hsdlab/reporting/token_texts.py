"""The tokens of a record as they stand in its text, with the spaces between them."""

from __future__ import annotations

from hsdlab.records.example import ExampleRecord

MOST_LOST = 8  # characters of the text that tokens without a text of their own may have made


def spaced_tokens(example: ExampleRecord) -> list[str]:
    """Give each token the space that stands before it in the text.

    SentencePiece's tokenizers, those of T5 and Llama 2, drop the space of a token that is decoded alone. The
    prediction has it.

    Args:
        example: Its `tokens` and `prediction` are read.

    Returns:
        A text for each token. A token that has its white space, and one that the prediction leaves out, such as the
        end of sequence, is as it was recorded.

    Example:
        >>> spaced_tokens(ExampleRecord("a", "Try it.", (), 4, None, tokens=("Try", "it", ".", "</s>")))
        ['Try', ' it', '.', '</s>']
    """
    text, place, found = example.prediction, 0, True
    spaced: list[str] = []
    for token in example.tokens:
        bare = token.strip()
        start = len(text) - len(text[place:].lstrip())
        if bare and not found:  # the tokens before made a part of the text that they do not show: halves of a character
            start = text.find(bare, place, place + MOST_LOST + len(bare))
        if bare:
            found = start >= 0 and text.startswith(bare, start)
        if bare and found:
            lacks_space = start > 0 and text[start - 1].isspace() and not token[0].isspace()
            if lacks_space and not (spaced and spaced[-1][-1:].isspace()):
                token = " " + token
            place = start + len(bare)
        spaced.append(token)
    return spaced
