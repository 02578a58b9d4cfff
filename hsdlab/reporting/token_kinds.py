"""Which tokens exit early: executed layers by the kind of token, from the records of a prediction file alone.

There is no tagger and no list of words. A token is classified by its characters, its place and the source, so that the
kinds mean the same for every model and language that writes words with spaces.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import zip_longest

from hsdlab.records.example import ExampleRecord
from hsdlab.records.strategy_result import StrategyResult
from hsdlab.reporting.depth import token_depths
from hsdlab.reporting.token_texts import spaced_tokens

KIND, COPIED, SENTENCE, TEXT = "Kind of token", "Words and numbers", "Part of the sentence", "Part of the text"
START_OF_SENTENCE, START_OF_WORD, INSIDE_WORD = "first word of a sentence", "start of a word", "inside a word"
NUMBER, PUNCTUATION, WHITE_SPACE, END = "number", "punctuation", "white space", "end of sequence"
IN_SOURCE, NOT_IN_SOURCE = "in the source", "not in the source"
THIRDS = ("first third", "middle third", "last third")
GROUPS = {
    KIND: (START_OF_SENTENCE, START_OF_WORD, INSIDE_WORD, NUMBER, PUNCTUATION, WHITE_SPACE, END),
    COPIED: (IN_SOURCE, NOT_IN_SOURCE),
    SENTENCE: THIRDS,
    TEXT: THIRDS,
}
"""The kinds of each group. Within a group no token has two kinds."""

SENTENCE_END = re.compile(r"([.!?…।؟][\"'”’»)\]]*\s|[。！？][”’」』）]*)\s*$")
"""A mark and the white space after it, which the marks of Chinese and Japanese do without."""
WORD = re.compile(r"[^\W_]+")


def exits_differ(result: StrategyResult) -> bool:
    """Tell whether the strategy decides by token, as early exit does.

    Args:
        result: The layers of its examples are read.

    Returns:
        Whether two examples ran different numbers of layers in the same decode step. A schedule's never do.
    """
    depths = [[layers for _, layers in token_depths(each, result.num_layers)[1:]] for each in result.examples]
    return any(len({layers for layers in step if layers is not None}) > 1 for step in zip_longest(*depths))


def layers_by_kind(examples: Iterable[ExampleRecord], num_layers: int) -> dict[tuple[str, str], list[float]]:
    """Collect the executed layers of the tokens of each kind.

    Args:
        examples: Their tokens, layers, predictions and sources are read.
        num_layers: L of the model.

    Returns:
        (group, kind) -> the number of layers that made each such token, in the order of `GROUPS`; kinds without a
        token are left out. The first token of a text comes from the prefill, at full depth, and is not counted.
    """
    found: dict[tuple[str, str], list[float]] = {(group, kind): [] for group in GROUPS for kind in GROUPS[group]}
    for example in examples:
        depths = token_depths(example, num_layers)
        for kinds, (_, layers) in list(zip(token_kinds(example), depths, strict=True))[1:]:
            for group, kind in kinds.items():
                found[group, kind].append(layers)
    return {name: layers for name, layers in found.items() if layers}


def token_kinds(example: ExampleRecord) -> list[dict[str, str]]:
    """Classify the tokens of a text.

    Args:
        example: Its tokens, prediction and source are read.

    Returns:
        Group -> kind for each token. A token that a group is not about is not in it. Only words and numbers are in the
        source or not, and the end of sequence belongs to no sentence.
    """
    texts = spaced_tokens(example)
    kinds = _kinds(example, texts)
    found = [{KIND: kind, TEXT: THIRDS[3 * place // len(texts)]} for place, kind in enumerate(kinds)]
    for sentence in _sentences(texts, kinds):
        for place, token in enumerate(sentence):
            found[token][SENTENCE] = THIRDS[3 * place // len(sentence)]
        first = next((token for token in sentence if kinds[token] == START_OF_WORD), None)
        numbers = (token for token in sentence if kinds[token] == NUMBER)
        if first is not None and first < next(numbers, len(texts)):
            found[first][KIND] = START_OF_SENTENCE
    known = set(WORD.findall(example.source.lower()))
    for word in _words(texts, kinds) if example.source else ():
        parts = WORD.findall("".join(texts[token] for token in word).lower())
        for token in word:
            found[token][COPIED] = IN_SOURCE if parts and known.issuperset(parts) else NOT_IN_SOURCE
    return found


def _kinds(example: ExampleRecord, texts: Sequence[str]) -> list[str]:
    """Return the kind of each token, where the first word of a sentence is a start of a word."""
    kinds: list[str] = []
    for place, text in enumerate(texts):
        starts = not kinds or kinds[-1] in (PUNCTUATION, WHITE_SPACE) or (text + " ")[0].isspace()
        if place == len(texts) - 1 and _ends_the_sequence(text, example.prediction):
            kind = END
        elif not text.strip():
            kind = WHITE_SPACE
        elif any(map(str.isdigit, text)):
            kind = NUMBER
        elif not any(character.isalpha() or character == "\N{REPLACEMENT CHARACTER}" for character in text):
            kind = PUNCTUATION
        else:
            kind = START_OF_WORD if starts or texts[place - 1][-1].isspace() else INSIDE_WORD
        kinds.append(kind)
    return kinds


def _ends_the_sequence(text: str, prediction: str) -> bool:
    """Tell whether the last token is one that the prediction, a text without special tokens, does not have."""
    bare = text.strip()
    return bool(bare) and "\N{REPLACEMENT CHARACTER}" not in bare and not prediction.endswith(bare)


def _sentences(texts: Sequence[str], kinds: Sequence[str]) -> list[list[int]]:
    """Return the places of the tokens of each sentence. The end of sequence is in none."""
    sentences: list[list[int]] = [[]]
    written = ""
    for place, text in enumerate(texts):
        space = text[: len(text) - len(text.lstrip())]
        if kinds[place] not in (WHITE_SPACE, END) and SENTENCE_END.search(written + space):
            sentences.append([])
            written = ""
        if kinds[place] != END:
            sentences[-1].append(place)
        written += text
    return [sentence for sentence in sentences if sentence]


def _words(texts: Sequence[str], kinds: Sequence[str]) -> list[list[int]]:
    """Return the places of the tokens of each word or number."""
    words: list[list[int]] = []
    for place, kind in enumerate(kinds):
        goes_on = place and kinds[place - 1] in (START_OF_WORD, INSIDE_WORD, NUMBER)
        if kind == INSIDE_WORD or (kind == NUMBER and goes_on and not texts[place][0].isspace()):
            words[-1].append(place)
        elif kind in (START_OF_WORD, NUMBER):
            words.append([place])
    return words
