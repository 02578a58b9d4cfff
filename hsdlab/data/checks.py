"""What a text and an example have to be, whatever data set they come from."""

from collections.abc import Sequence

from hsdlab.data.batches import Example
from hsdlab.errors import UserError


def check_examples(examples: Sequence[Example], where: str) -> None:
    """Refuse examples of which a run would fail, or silently go wrong, later.

    Args:
        examples: All of a split.
        where: How the message begins: the split and its data set.

    Raises:
        UserError: An id, source or reference is no text that can be encoded, the references are no list or tuple, or
            two examples have the same id.
    """
    ids: set[str] = set()
    for number, example in enumerate(examples, start=1):
        if not isinstance(example, Example):
            raise UserError(f"{where}, example {number}: expected an Example, got {type(example).__name__}")
        check_text(example.id, "id", f"{where}, example {number}")
        place = f"{where}, example {number} ({example.id[:80]!r})"
        if example.id in ids:
            raise UserError(f"{place}: an earlier example has the same id")
        ids.add(example.id)
        check_text(example.source, "source", place)
        if not isinstance(example.references, list | tuple) or not example.references:
            raise UserError(
                f"{place}: references have to be a tuple of one text or more, got {example.references!r:.80}"
            )
        for reference in example.references:
            check_text(reference, "each of the references", place)


def check_text(value: object, name: str, where: str) -> None:
    """Refuse what is no text, blank, or cannot be encoded in UTF-8.

    Args:
        value: What the data holds.
        name: What the field is called, for the message.
        where: How the message begins: the file and the line, or the split and the example.

    Raises:
        UserError: The value is no text; the message begins with `where` and names the field.
    """
    if not isinstance(value, str):
        raise UserError(f"{where}: {name} has to be a string, got {type(value).__name__}")
    if not value.strip():
        raise UserError(f"{where}: {name} has to hold text, got {value[:20]!r}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{where}: {name} cannot be encoded in UTF-8: its character {error.start + 1} is {value[error.start]!a}, "
            "half of a pair (a text that was cut within an emoji?). Remove it, or write \\ufffd in its place"
        ) from error
