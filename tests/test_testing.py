"""Law 10: ``check_strategy`` accepts good strategies and rejects broken ones, each by the law that it breaks."""

import pytest

from hsdlab import CALM, HSD, FullDepth, SkipDecode
from hsdlab.testing import LawViolationError, check_strategy, tiny_model
from tests import strategies_for_tests as broken


@pytest.mark.parametrize(
    "strategy",
    [FullDepth(), HSD(), SkipDecode(), CALM(0.9), broken.Changing(), broken.RandomPlan()],
    ids=repr,
)
def test_accepts_good_strategies(strategy):
    checked = check_strategy(strategy)
    assert {"law_2_never_skip", "law_3_replay", "law_4_trace", "law_8_config"} <= set(checked)
    assert ("law_9_knob" in checked) == (type(strategy) not in (FullDepth, broken.Changing))


@pytest.mark.parametrize(
    ("strategy", "law"),
    [
        (broken.Leaks(), "law_5_restored"),
        (broken.LeaksOnException(), "law_5_restored"),
        (broken.KeepsState(), "law_6_no_state"),
        (broken.CountsItsSteps(), "law_6_no_state"),
        (broken.LiesInItsTrace(), "law_4_trace"),
        (broken.IgnoresItsKnob(), "law_9_knob"),
        (broken.ChangesAtNeverSkip(), "law_2_never_skip"),
    ],
    ids=lambda value: getattr(value, "__class__", value).__name__,
)
def test_rejects_broken_strategies(strategy, law):
    with pytest.raises(LawViolationError, match=law):
        check_strategy(strategy, tiny_model(num_layers=8))


def test_settings_are_put_in_order():
    with pytest.raises(LawViolationError, match="more layers"):
        check_strategy(HSD(2), tiny_model(), settings=[HSD(2), HSD(1)])
