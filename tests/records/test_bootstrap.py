"""The bootstrap intervals: hand-made cases, coverage by simulation, BLEU from summed statistics."""

import math

import numpy as np
import pytest

from hsdlab.records.bootstrap import bootstrap_interval, paired_interval


def bleu1(sums):
    """BLEU-1 by its definition: unigram precision times the brevity penalty."""
    system_length, reference_length, correct, total = sums[0], sums[1], sums[2], sums[6]
    return correct / total * min(1.0, math.exp(1 - reference_length / system_length))


def bleu_rows(count, seed=0):
    """Statistics [count, 10] as the predictions hold them: lengths, then correct and total n-grams."""
    draw = np.random.default_rng(seed)
    system, reference = draw.integers(8, 20, count), draw.integers(8, 20, count)
    totals = np.stack([system - order for order in range(4)], axis=1)
    correct = draw.binomial(totals, [0.7, 0.5, 0.4, 0.3])
    return np.column_stack([system, reference, correct, totals])


def test_two_examples_have_the_exact_binomial_interval():
    # The mean of two draws from {0, 1} is 0, 0.5, 1 with probability 1/4, 1/2, 1/4.
    assert bootstrap_interval([0.0, 1.0], level=0.95) == (0.0, 1.0)
    assert bootstrap_interval([0.0, 1.0], level=0.4) == (0.5, 0.5)


def test_mean_interval_is_the_normal_one_on_many_examples():
    values = np.random.default_rng(1).normal(3.0, 2.0, 2000)
    low, high = bootstrap_interval(values, resamples=4000)
    error = values.std() / math.sqrt(len(values))
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.1 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.1 * error)


def test_coverage_of_a_known_mean():
    # Uniform on [0, 1], mean 0.5: of 400 intervals at 90 % about 360 hold it (binomial, sd 6). The
    # percentile bootstrap of 60 examples falls about one point short of its level: 4 sd below, 3 above pass.
    draw = np.random.default_rng(2)
    intervals = [bootstrap_interval(draw.random(60), resamples=500, level=0.9) for _ in range(400)]
    held = sum(low <= 0.5 <= high for low, high in intervals)
    assert 336 <= held <= 378


def test_wider_level_gives_wider_interval_and_the_seed_fixes_it():
    values = np.random.default_rng(3).random(30)
    narrow, wide = bootstrap_interval(values, level=0.5), bootstrap_interval(values, level=0.99)
    assert wide[0] < narrow[0] < values.mean() < narrow[1] < wide[1]
    seventh, eighth, again = (bootstrap_interval(values, seed=seed) for seed in (7, 8, 7))
    assert seventh == again
    assert seventh != eighth


def test_corpus_figure_comes_from_the_sums_and_not_from_the_mean_of_examples():
    # A slow second way: draw example indices, sum their rows, compute. Same distribution, another draw.
    rows = bleu_rows(80)
    low, high = bootstrap_interval(rows, bleu1, resamples=2000)
    draw = np.random.default_rng(9)
    slow = [bleu1(rows[draw.integers(0, 80, 80)].sum(axis=0)) for _ in range(2000)]
    assert low < bleu1(rows.sum(axis=0)) < high
    assert (low, high) == pytest.approx(np.percentile(slow, [2.5, 97.5]), abs=0.006)


def test_paired_ratio_of_a_fixed_factor_has_no_spread():
    values = np.random.default_rng(4).random(25)
    assert paired_interval(0.9 * values, values) == pytest.approx((0.9, 0.9))
    assert paired_interval(values - 0.25, values, contrast="difference") == pytest.approx((-0.25, -0.25))


def test_pairing_is_narrower_than_two_separate_intervals():
    draw = np.random.default_rng(5)
    baseline = draw.random(100)
    strategy = baseline - 0.05 + draw.normal(0, 0.02, 100)
    low, high = paired_interval(strategy, baseline, contrast="difference")
    own_low, own_high = bootstrap_interval(strategy)
    assert low < (strategy - baseline).mean() < high
    assert high - low < 0.2 * (own_high - own_low)


def test_paired_corpus_figure_of_itself_is_one():
    assert paired_interval(bleu_rows(20), bleu_rows(20), bleu1) == (1.0, 1.0)


@pytest.mark.parametrize("values", [[], [0.5]])
def test_fewer_than_two_examples_have_no_interval(values):
    assert all(map(math.isnan, bootstrap_interval(values)))
    assert all(map(math.isnan, paired_interval(values, values)))


def test_zero_baseline_and_missing_values_have_no_interval():
    assert all(map(math.isnan, paired_interval([0.0, 0.0], [0.0, 0.0])))
    assert all(map(math.isnan, paired_interval([1.0, 1.0], [0.0, 1.0])))  # the first example drawn twice
    assert all(map(math.isnan, bootstrap_interval([0.1, math.nan, 0.3])))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bootstrap_interval([[1, 2], [3, 4]]), "Got 2 statistics an example. A mean needs one"),
        (lambda: bootstrap_interval(1.0), r"Got statistics of shape \(\)"),
        (lambda: bootstrap_interval([1, 2], resamples=0), "Got resamples=0. Expected at least 1"),
        (lambda: bootstrap_interval([1, 2], level=95), "Got level=95. Expected a share between 0 and 1"),
        (lambda: paired_interval([1, 2], [1, 2, 3]), "Expected the same examples"),
        (lambda: paired_interval([1, 2], [1, 2], contrast="log"), "Got contrast 'log'. Expected 'ratio'"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
