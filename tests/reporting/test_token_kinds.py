"""Which tokens exit early: kinds, sentences and layers of texts by hand."""

from dataclasses import replace

import pytest

from hsdlab.records.example import ExampleRecord
from hsdlab.reporting.token_kinds import COPIED, KIND, SENTENCE, TEXT, exits_differ, layers_by_kind, token_kinds
from hsdlab.reporting.token_texts import spaced_tokens
from tests.results import replace_examples

PLAIN = ("Un", "zen", " has", " 1", "2", " pub", "s", ",", " all", " near", ".", " Try", " it", "!", "<end>")
"""The tokens of a text as a byte-level tokenizer decodes them one by one; SentencePiece's lose their spaces."""


def of(tokens, prediction, source="", layers=()):
    return ExampleRecord("x", prediction, (), len(tokens), None, source=source, tokens=tokens, layers=layers)


def kinds(example, group=KIND):
    return [each.get(group) for each in token_kinds(example)]


@pytest.fixture(params=["byte-level", "SentencePiece"])
def text(request):
    tokens = PLAIN if request.param == "byte-level" else tuple(each.strip() for each in PLAIN)
    layers = ("0-1", "0", "0-3", "0", "0", "0", "0-1", "0", "0", "0", "0-3", "0", "0", "0-1")
    return of(tokens, "Unzen has 12 pubs, all near. Try it!", "Try: 12 PUBS", layers)


def test_spaces_are_those_of_the_prediction(text):
    assert spaced_tokens(text) == list(PLAIN)


def test_a_character_in_two_tokens_and_line_breaks_keep_the_spaces_after_them():
    lost = of(("a", "\N{REPLACEMENT CHARACTER}", "\N{REPLACEMENT CHARACTER}", "b", "\n", "c", "d", ""), "a 😀 b\nc d")
    assert spaced_tokens(lost) == ["a", *["\N{REPLACEMENT CHARACTER}"] * 2, " b", "\n", "c", " d", ""]


def test_each_token_has_one_kind(text):
    first, start, inside, number = "first word of a sentence", "start of a word", "inside a word", "number"
    assert kinds(text) == [
        *(first, inside, start, number, number, start, inside, "punctuation", start, start, "punctuation"),
        *(first, start, "punctuation", "end of sequence"),
    ]


def test_a_word_is_in_the_source_as_a_whole_in_any_case(text):
    new, copied = "not in the source", "in the source"
    expected = [new, new, new, copied, copied, copied, copied, None, new, new, None, copied, new, None, None]
    assert kinds(text, COPIED) == expected
    assert kinds(replace(text, source=""), COPIED) == [None] * len(PLAIN)


def test_thirds_are_of_the_sentence_and_of_the_text(text):
    first, middle, last = (f"{part} third" for part in ("first", "middle", "last"))
    assert kinds(text, SENTENCE) == [
        *([first] * 4 + [middle] * 4 + [last] * 3),  # 11 tokens
        *(first, middle, last),
        None,
    ]
    assert kinds(text, TEXT) == [first] * 5 + [middle] * 5 + [last] * 5


@pytest.mark.parametrize(
    ("tokens", "starts"),
    [
        (("It", " costs", " 3", ".", "5", ".", " 7", " more", "."), [0]),  # a number first: no first word
        (("Why", '?"', "\n", '"', "So", "."), [0, 4]),
        (("好", "。", "好", "！", "好"), [0, 2, 4]),
        (("a", ".", "b", " c"), [0]),
    ],
)
def test_a_sentence_ends_at_its_mark_and_white_space(tokens, starts):
    found = kinds(of(tokens, "".join(tokens)))
    assert [place for place, kind in enumerate(found) if kind == "first word of a sentence"] == starts


def test_a_text_that_was_cut_has_no_end_of_sequence():
    assert kinds(of(("So", " it", " goes"), "So it goes"))[-1] == "start of a word"


def test_layers_of_the_tokens_of_each_kind_without_the_one_from_the_prefill(text):
    found = layers_by_kind([text, of((), "not recorded")], num_layers=4)
    assert found[KIND, "first word of a sentence"] == [4]  # of "Try"; "Un" comes from the prefill
    assert found[KIND, "number"] == [4, 1]
    assert found[KIND, "inside a word"] == [2, 1]
    assert found[KIND, "end of sequence"] == [2]
    assert (KIND, "white space") not in found
    assert sum(len(layers) for (group, _), layers in found.items() if group == TEXT) == len(PLAIN) - 1


def test_only_a_strategy_that_decides_by_token_differs_within_a_step(recorded):
    full_depth, hsd = recorded
    assert not exits_differ(full_depth)
    assert not exits_differ(hsd)  # 3, 2, 2 layers and 3: the schedule of a longer and a shorter text
    early = replace(hsd, examples=(hsd.examples[0], replace(hsd.examples[1], layers=("0", "0-3", "0"))))
    assert exits_differ(early)
    assert not exits_differ(replace_examples(early, layers=(), tokens=()))
