"""Interleaved rounds on sides that tell fake times; medians, quartiles, ratios within a round."""

from dataclasses import astuple

import numpy as np
import pytest

from hsdlab.decoding import Timing
from hsdlab.runs.timing import Spread, interleave, ratio_spread, spread


def recording_sides(names, log):
    """Sides that note (name, case) and take as many seconds as runs came before them."""

    def side(name):
        def run(case):
            log.append((name, case))
            return Timing(prompt_s=0.5, decode_s=float(len(log)), decode_passes=case + 1)

        return run

    return [side(name) for name in names]


def test_every_side_runs_once_on_each_case_before_the_next_case():
    log = []
    interleave(recording_sides("ABC", log), cases=2, rounds=4)
    assert len(log) == 3 * 2 * 4
    for start in range(0, len(log), 3):
        turn = log[start : start + 3]
        assert sorted(name for name, _ in turn) == ["A", "B", "C"]
        assert {case for _, case in turn} == {start // 3 % 2}


def test_timings_stand_under_their_side_round_and_case():
    log = []
    timings = interleave(recording_sides("AB", log), cases=3, rounds=2)
    for index, name in enumerate("AB"):
        when = [float(position + 1) for position, (who, _) in enumerate(log) if who == name]
        assert [[t.decode_s for t in row] for row in timings[index]] == [when[:3], when[3:]]
        assert [[t.decode_passes for t in row] for row in timings[index]] == [[1, 2, 3], [1, 2, 3]]


def test_the_order_changes_and_follows_from_the_seed():
    def order(seed):
        log = []
        interleave(recording_sides("ABC", log), cases=1, rounds=20, seed=seed)
        return [name for name, _ in log]

    assert order(0) == order(0)
    assert order(0) != order(1)
    assert {order(0)[start] for start in range(0, 60, 3)} == {"A", "B", "C"}  # each side comes first at times


def test_after_run_is_called_after_each_run():
    log, lengths = [], []
    interleave(recording_sides("AB", log), cases=2, rounds=1, after_run=lambda: lengths.append(len(log)))
    assert lengths == [1, 2, 3, 4]


def test_spread_is_the_median_and_the_quartiles():
    assert spread([5.0, 1.0, 4.0, 2.0, 3.0]) == Spread(median=3.0, low=2.0, high=4.0)
    assert spread([7.0]) == Spread(7.0, 7.0, 7.0)
    values = np.random.default_rng(0).random(10)
    low, median, high = np.quantile(values, [0.25, 0.5, 0.75])
    assert astuple(spread(values.tolist())) == pytest.approx((median, low, high))


def test_spread_ignores_how_far_an_outlier_lies():
    assert spread([1.0, 2.0, 3.0, 4.0, 1e6]) == spread([1.0, 2.0, 3.0, 4.0, 5.0])


def test_spread_of_nothing():
    with pytest.raises(ValueError, match="no values"):
        spread([])


def test_ratios_cancel_a_drifting_machine():
    drift = [1.0, 10.0, 0.1, 3.0]
    slow, fast = [6.0 * d for d in drift], [4.0 * d for d in drift]
    assert astuple(ratio_spread(slow, fast)) == pytest.approx((1.5, 1.5, 1.5))


def test_ratios_are_taken_before_the_median():
    assert ratio_spread([1.0, 4.0, 9.0], [1.0, 1.0, 4.5]).median == 2.0  # of the medians: 4 / 1


def test_ratios_need_the_same_rounds():
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        ratio_spread([1.0, 2.0], [1.0])
