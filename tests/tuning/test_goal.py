"""What is chosen among decoded settings, and which one is decoded next."""

import itertools

import pytest

from hsdlab.tuning import Goal

NAN = float("nan")
KEEPS, FAST = Goal(max_loss=0.05), Goal(speedup=1.6)


def decoded(goal, meets):
    """Decode as the tuner does until nothing could change the choice; the places in order, and the verdicts."""
    verdicts, order = [None] * len(meets), []
    while (place := goal.next_to_decode(verdicts)) is not None:
        assert verdicts[place] is None
        verdicts[place] = meets[place]
        order.append(place)
    return order, verdicts


def test_a_share_of_the_quality_may_be_lost_and_no_more():
    assert KEEPS.met(share=0.95, speed_up=0.5)
    assert KEEPS.met(share=0.77 * 0.95 / 0.77, speed_up=0.5)  # 0.9499999999999998
    assert not KEEPS.met(share=0.949, speed_up=3.0)
    assert not KEEPS.met(share=NAN, speed_up=3.0)
    assert Goal(max_loss=0.0).met(share=1.0, speed_up=NAN)


def test_the_speed_up_is_the_measured_one():
    assert FAST.met(share=0.1, speed_up=1.6)
    assert not FAST.met(share=1.0, speed_up=1.59)
    assert not FAST.met(share=1.0, speed_up=NAN)


def test_the_fastest_that_keeps_enough_or_the_best_that_is_fast_enough_is_chosen():
    verdicts, shares = [True, None, True, False], [0.99, NAN, 0.96, 0.4]
    assert KEEPS.chosen(verdicts, shares) == 2
    assert FAST.chosen(verdicts, shares) == 0
    assert KEEPS.chosen([False, None], [0.5, NAN]) is None
    assert FAST.chosen([], []) is None


def test_the_border_is_found_by_bisection():
    meets = [place < 11 for place in range(16)]  # slowest first
    assert decoded(KEEPS, meets)[0][:4] == [8, 12, 10, 11]
    meets = [place >= 11 for place in range(16)]
    assert decoded(FAST, meets)[0][:4] == [8, 12, 10, 11]


def test_then_faster_settings_are_decoded_the_nearest_first():
    meets = [True, True, False, False, True, False]
    order, verdicts = decoded(KEEPS, meets)
    assert order == [3, 1, 2, 4, 5]  # the fourth keeps enough though the second does not
    assert KEEPS.chosen(verdicts, meets) == 4
    order, _ = decoded(FAST, [False, True, True, True])
    assert order == [2, 1, 0, 3]  # the last might be better than its score


@pytest.mark.parametrize("meets", list(itertools.product([False, True], repeat=5)), ids=str)
def test_without_a_limit_the_choice_is_that_of_decoding_all(meets):
    shares = [0.9, 0.7, 0.8, 0.6, 0.5]
    _, verdicts = decoded(KEEPS, meets)
    assert KEEPS.chosen(verdicts, shares) == KEEPS.chosen(meets, shares)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "Got neither; expected one of --max-loss .* and --speedup"),
        ({"max_loss": 0.05, "speedup": 1.6}, "Got max-loss=0.05 and speedup=1.6; expected one of"),
        ({"max_loss": 1.0}, "max-loss=1: expected a share of full depth's quality from 0 up to 1"),
        ({"max_loss": -0.1}, "max-loss=-0.1: "),
        ({"speedup": 1.0}, "speedup=1: expected a number above 1"),
        ({"speedup": NAN}, "speedup=nan: "),
    ],
)
def test_goals_that_are_none(given, message):
    with pytest.raises(ValueError, match=message):
        Goal(**given)
