"""From a docstring to an example: its summary line, and the prose that follows it."""

import re

SUMMARY_WORDS = (5, 25)
SOURCE_WORDS = (20, 120)

_HEADER = (
    r"(?:Args|Arguments|Params?|Parameters?|Returns?|Raises|Yields|Examples?|Notes?|NOTE|Usage|Attributes|Inputs?"
    r"|Outputs?|Shape|Warnings?|Keyword [Aa]rg\w*|References?|See [Aa]lso|Todo|TODO|Caution|Deprecated|Tips?"
    r"|Requires?|Limitations)\b[^\n.]{0,20}:"
)
# A section, field list, doctest or directive ends the paragraph before it.
_BREAK = re.compile(rf"\n(?=[ \t]*(?:{_HEADER}|[:@]\w|>>>|\.\. ))")
# Lines of lists, tables, code, sections and definitions (an indented line).
_NOT_PROSE = re.compile(
    r"^(?:\s+\S|[-*+•|#@$=~^>]|\.\.|:\w|\(?[\da-zA-Z][.)]\s|```|[A-Z][\w ]{0,30}:\s*$|TODO|FIXME|XXX|NB|"
    rf"{_HEADER})",
    re.MULTILINE,
)
# Light markup; what stays of each is its group.
_MARKUP = (
    re.compile(r":[\w:+-]+:`~?([^`<]+?)(?: <[^`]*>)?`"),  # :class:`X`
    re.compile(r"\[`+~?([^`]+)`+\](?:\([^)]*\))?"),  # [`X`], [`X`](url)
    re.compile(r"\[([^\]]+)\]\([^)]*\)"),  # [text](url)
    re.compile(r"``([^`]+)``"),
    re.compile(r"`([^`<]+?)(?: <[^`]*>)?`_{0,2}"),  # `X`, `text <url>`_
    re.compile(r"\*\*([^*]+)\*\*"),
    re.compile(r"(?<![\w*])\*([A-Za-z][\w ]*)\*(?![\w*])"),
)
# What is left of markup, code and addresses, and calls within calls.
_NOT_TEXT = re.compile(r">>>|://|www\.|[{}|`$^~\\]|%\(|==|[=-]>|<-|TODO|FIXME|XXX|\*\*|\[\[|\w\(.*\w\(.*\w\(.*\w\(")
_PLAIN_WORD = re.compile(r"[(\"']?[A-Za-z][a-z]*(?:[-/'’][A-Za-z]?[a-z]+)*[\"')]?[.,;:!?]?[\"')]?")
_FIRST_SENTENCE = re.compile(r"(.*?(?<!e\.g)(?<!i\.e)(?<! vs)(?<!etc)[.!?][)\"']?) +(?=[A-Z\"'(])(.*)")
# Words that say nothing about a text's subject, by their first five letters.
_COMMON_STEMS = {
    *("this", "that", "with", "from", "when", "will", "which", "used", "have", "wheth", "into", "given"),
    *("retur", "class", "funct", "metho", "objec", "value"),
}


def summary_and_source(docstring: str) -> tuple[str, str] | None:
    """Split a docstring into its one-line summary and the prose that follows it.

    Args:
        docstring: As `inspect.cleandoc` gives it.

    Returns:
        Summary and prose, without light markup. None if the docstring makes no example, since it is too short, too
        long, mostly lists or code, or its prose repeats the summary or has nothing to do with it.

    >>> summary_and_source('''Find the ``best`` path in a graph.
    ...
    ... The path is the one whose edges have the smallest sum of weights; of two such paths the one with fewer
    ... edges is taken.
    ...
    ... Args:
    ...     graph: The graph.
    ... ''')[0]
    'Find the best path in a graph.'
    """
    first, *paragraphs = re.split(r"\n[ \t]*\n", _BREAK.sub("\n\n", docstring.strip()))
    if len(docstring.split()) < SUMMARY_WORDS[0] + SOURCE_WORDS[0] or _NOT_PROSE.search(first):
        return None
    first = _clean(first)
    sentences = _FIRST_SENTENCE.fullmatch(first)
    summary, remainder = sentences.groups() if sentences else (first, "")
    if not _is_summary(summary) or (remainder and not _is_prose(remainder)):
        return None
    source = remainder
    for paragraph in paragraphs:
        text = _clean(paragraph)
        longer = f"{source} {text}".strip()
        if _NOT_PROSE.search(paragraph) or not _is_prose(text) or len(longer.split()) > SOURCE_WORDS[1]:
            break
        source = longer
    if not SOURCE_WORDS[0] <= len(source.split()) <= SOURCE_WORDS[1]:
        return None
    if " ".join(words_of(summary)) in " ".join(words_of(source)) or not _stems(summary) & _stems(source):
        return None  # nothing to write, or about something else
    return summary, source


def _clean(paragraph: str) -> str:
    """Return a paragraph on one line, without light markup."""
    text = " ".join(paragraph.split())
    for pattern in _MARKUP:
        text = pattern.sub(r"\1", text)
    return text


def _is_summary(text: str) -> bool:
    return (
        SUMMARY_WORDS[0] <= len(text.split()) <= SUMMARY_WORDS[1]
        and text[0].isupper()
        and text[-1] not in ":;,"
        and not _NOT_TEXT.search(text)
        and _plain_share(text) >= 0.7
    )


def _is_prose(text: str) -> bool:
    return (
        re.match(r"[A-Z\"'(]", text) is not None
        and re.search(r"[.!?][)\"']*$", text) is not None
        and not _NOT_TEXT.search(text)
        and _plain_share(text) >= 0.75
    )


def _plain_share(text: str) -> float:
    """Return the share of words that are written as in plain English, not names or numbers."""
    words = text.split()
    return sum(_PLAIN_WORD.fullmatch(word) is not None for word in words) / len(words)


def words_of(text: str) -> list[str]:
    """Split a text into words.

    Args:
        text: Any text.

    Returns:
        The words in lower case, without punctuation.
    """
    return re.findall(r"\w+", text.lower())


def _stems(text: str) -> set[str]:
    return {word[:5] for word in re.findall(r"[a-z]{4,}", text.lower())} - _COMMON_STEMS
