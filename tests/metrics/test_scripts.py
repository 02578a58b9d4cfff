"""Texts of other scripts than Latin, and summaries of several sentences, against the packages' own numbers."""

import warnings

import pytest
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer

from hsdlab import UserError
from hsdlab.metrics import BLEU, ROUGE
from hsdlab.metrics.rouge import UnicodeTokenizer, rouge_scores
from hsdlab.modules.text_metrics import MetricOptions, text_metric

TEXTS = {
    "Cyrillic": "Кошка сидит на окне",
    "Greek": "Η γάτα κάθεται",
    "Devanagari": "बिल्ली खिड़की पर बैठी है",
    "Arabic": "القطة تجلس على النافذة",
    "Hebrew": "החתול יושב",
    "Chinese": "猫坐在窗台上",
    "Japanese": "ねこが窓にすわる",
    "Korean": "고양이가 창가에 앉아 있다",
    "Thai": "แมวนั่งอยู่ที่หน้าต่าง",
}


@pytest.mark.parametrize("script", TEXTS)
def test_equal_texts_of_any_script_score_1_and_the_default_warns_once(script):
    text = TEXTS[script]
    metric = ROUGE(tokenizer="unicode")
    metric.update([text], [[text]])
    assert {key: value.item() for key, value in metric.compute().items()} == dict.fromkeys(metric.keys, 1.0)
    default = ROUGE()
    with pytest.warns(UserWarning, match="--model.rouge_tokenizer=unicode"):
        default.update([text], [[text]])
    assert default.compute()["rouge1"] == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        default.update([text], [[text]])


@pytest.mark.parametrize("script", TEXTS)
def test_half_of_the_words_score_a_half(script):
    words = UnicodeTokenizer().tokenize(TEXTS[script])
    assert len(words) >= 2
    other = [f"x{index}" for index in range(len(words) - 1)]
    found = rouge_scores(" ".join([words[0], *other]), [" ".join(words)], tokenizer="unicode")["rouge1"]
    assert found == pytest.approx(1 / len(words))


def test_vowel_signs_and_accents_stay_in_their_word():
    assert UnicodeTokenizer().tokenize("बिल्ली है, Ça va? naïve e\u0301te\u0301") == [
        *("बिल्ली", "है", "ça", "va", "naïve", "e\u0301te\u0301"),
    ]


@pytest.mark.parametrize("text", ["The cat sat.", "naïve café in Zürich", "123 !?", "", "…"])
def test_texts_that_the_default_knows_are_not_warned_of(text):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ROUGE().update([text], [[text]])


def test_a_tokenizer_of_ones_own_is_that_of_rouge_score():
    class Letters:
        def tokenize(self, text):
            return list(text)

    mine = Letters()
    expected = RougeScorer(["rouge2"], tokenizer=mine).score("кот сидит", "кот спит")["rouge2"].fmeasure
    assert 0 < expected < 1
    assert rouge_scores("кот спит", ["кот сидит"], tokenizer=mine)["rouge2"] == expected


def test_lsum_is_that_of_rouge_score_and_differs_from_l_over_lines():
    prediction, reference = "b c\na", "a\nb c"
    expected = RougeScorer(["rougeLsum"]).score(reference, prediction)["rougeLsum"].fmeasure
    metric = ROUGE(lsum=True)
    metric.update([prediction], [[reference]])
    figures = {key: value.item() for key, value in metric.compute().items()}
    assert list(figures) == ["rouge1", "rouge2", "rougeL", "rougeLsum"]
    assert figures["rougeLsum"] == pytest.approx(expected) == 1
    assert figures["rougeL"] < 1


@pytest.mark.parametrize("tokenize", ["13a", "intl", "zh", "char", "none"])
@pytest.mark.parametrize("script", ["Chinese", "Cyrillic"])
def test_bleu_with_each_tokenizer_is_sacrebleus(tokenize, script):
    reference = TEXTS[script]
    prediction = reference[:-1] + "x."
    metric = BLEU(tokenize=tokenize)
    metric.update([prediction], [[reference]])
    for order in (1, 4):
        expected = sacrebleu.BLEU(tokenize=tokenize, max_ngram_order=order).corpus_score([prediction], [[reference]])
        assert metric.compute()[f"bleu{order}"].item() == pytest.approx(expected.score / 100)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ROUGE(tokenizer="words"), "tokenizer='words'; expected one of default, unicode, or an object"),
        (lambda: ROUGE(use_stemmer=True, tokenizer="unicode"), "use_stemmer is Porter's stemmer of English"),
        (lambda: BLEU(tokenize="mecab"), "tokenize='mecab'; expected one of 13a, intl, zh, char, none"),
    ],
)
def test_what_cannot_be_is_refused_when_the_metric_is_made(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_the_options_of_a_decode_reach_the_metrics():
    options = MetricOptions(rouge_tokenizer="unicode", rouge_lsum=True, bleu_tokenizer="char")
    rouge, bleu = text_metric("rouge", options), text_metric("bleu", options)
    text = TEXTS["Chinese"]
    for metric in (rouge, bleu):
        metric.update([text], [[text]])
    assert rouge.compute()["rougeLsum"] == 1
    assert bleu.score([text], [[text]])[0][0] == len(text)  # one token a character
