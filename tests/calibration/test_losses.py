"""Losses by hand."""

import pytest

from hsdlab.calibration.losses import bounded, exact_match, risk_losses, textual_losses


def share_of_words(predictions, references):
    pairs = [(set(text.split()), set(full.split())) for text, (full,) in zip(predictions, references, strict=True)]
    return [len(words & full) / len(full) for words, full in pairs]


def test_risk_is_what_is_lost_and_never_what_is_won():
    assert risk_losses([0.2, 0.9, 0.5], [0.5, 0.5, 0.5]) == [pytest.approx(0.3), 0, 0]


def test_textual_loss_is_one_minus_the_score_against_the_full_text():
    assert textual_losses(["a b", "x", "a"], ["a b c d", "x", "b"], share_of_words) == [0.5, 0, 1]


def test_equal_texts_lose_nothing_and_are_not_scored():
    def without_words(predictions, references):
        assert len(predictions) == 1
        return [0.0]

    assert textual_losses(["", "!", "?"], ["", "!", "."], without_words) == [0, 0, 1]
    assert textual_losses(["", "!"], ["", "!"], lambda *texts: pytest.fail("scored nothing")) == [0, 0]


@pytest.mark.parametrize("losses", [risk_losses, lambda a, b: textual_losses(a, b, share_of_words)])
def test_lists_of_other_lengths_are_refused(losses):
    with pytest.raises(ValueError, match="zip"):
        losses([1, 2], [1, 2, 3])


def test_exact_match():
    assert exact_match(["a", "b", ""], [["c", "a"], ["b "], [""]]) == [1, 0, 1]
    assert textual_losses(["a", "b"], ["a", "c"], exact_match) == [0, 1]


def test_scores_outside_are_brought_to_the_nearest_end():
    assert [bounded(score) for score in (-0.2, 0.0, 0.3, 1 + 1e-7)] == [0, 0, 0.3, 1]
