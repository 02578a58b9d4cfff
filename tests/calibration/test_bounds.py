"""P-values against figures worked out by hand and against exact rational arithmetic."""

import math
import re
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsdlab.calibration import BOUNDS, risk_upper_bound, smallest_sample
from hsdlab.calibration.bounds import binomial, hoeffding, hoeffding_bentkus


def exact_tail(ones: int, number: int, tolerance: Fraction) -> Fraction:
    """P[Bin(number, tolerance) <= ones], without rounding."""
    return sum(math.comb(number, k) * tolerance**k * (1 - tolerance) ** (number - k) for k in range(ones + 1))


def test_hoeffding_by_hand():
    # n = 50, mean 0.1, δ = 0.3: exp(-2 · 50 · 0.2²) = exp(-4)
    assert hoeffding([0.1] * 50, 0.3) == pytest.approx(math.exp(-4))
    assert hoeffding([0.5] * 50, 0.3) == 1  # a mean beyond the tolerance proves nothing


@pytest.mark.parametrize("ones", [0, 1, 3, 7])
def test_binomial_is_exact(ones):
    losses = [1] * ones + [0] * (40 - ones)
    assert binomial(losses, 0.125) == pytest.approx(float(exact_tail(ones, 40, Fraction(1, 8))), rel=1e-12)


def test_binomial_refuses_losses_between():
    with pytest.raises(ValueError, match="0 or 1"):
        binomial([0, 0.5], 0.1)


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([0.0] * 20, (7 / 8) ** 20),  # no loss: (1 - δ)^n, and Bentkus' e times as much
        # mean 0.05, n = 20: h₁ = 0.05 ln(0.05/0.125) + 0.95 ln(0.95/0.875); Bentkus e · P[Bin(20, 1/8) <= 1] is more
        ([0.05] * 20, math.exp(-20 * (0.05 * math.log(0.4) + 0.95 * math.log(0.95 / 0.875)))),
        ([0.5] * 20, 1.0),
    ],
)
def test_hoeffding_bentkus_by_hand(losses, expected):
    assert hoeffding_bentkus(losses, 0.125) == pytest.approx(expected, rel=1e-9)


def test_bentkus_part_counts_where_it_is_smaller():
    # 200 examples, 60 of them lost, δ = 1/2: e · P[Bin(200, ½) <= 60] is below exp(-200 h₁(0.3, 0.5))
    losses = [1.0] * 60 + [0.0] * 140
    bentkus = math.e * float(exact_tail(60, 200, Fraction(1, 2)))
    tight = math.exp(-200 * (0.3 * math.log(0.6) + 0.7 * math.log(1.4)))
    assert bentkus < tight
    assert hoeffding_bentkus(losses, 0.5) == pytest.approx(bentkus, rel=1e-9)


def test_a_sum_that_rounding_lifts_over_a_whole_number_counts_as_it():
    losses = [0.1] * 30  # 0.1 thirty times adds up to 3
    bentkus = math.e * float(exact_tail(3, 30, Fraction(9, 10)))
    tight = math.exp(-30 * (0.1 * math.log(1 / 9) + 0.9 * math.log(9)))
    assert hoeffding_bentkus(losses, 0.9) == pytest.approx(min(bentkus, tight), rel=1e-6)


@pytest.mark.parametrize(("bound", "number"), [("hoeffding", 600), ("hoeffding_bentkus", 59), ("binomial", 59)])
def test_smallest_sample(bound, number):
    assert smallest_sample(bound, 0.05, 0.05) == number
    assert BOUNDS[bound]([0.0] * number, 0.05) <= 0.05 < BOUNDS[bound]([0.0] * (number - 1), 0.05)


@given(st.sampled_from(list(BOUNDS)), st.floats(0.02, 0.9), st.floats(0.01, 0.9))
def test_smallest_sample_is_where_the_p_value_turns(bound, tolerance, error):
    number = smallest_sample(bound, tolerance, error)
    assert BOUNDS[bound]([0.0] * number, tolerance) <= error * (1 + 1e-6)
    if number > 1:
        assert BOUNDS[bound]([0.0] * (number - 1), tolerance) > error * (1 - 1e-6)


def test_smallest_sample_of_a_tiny_tolerance_is_not_searched_for():
    assert smallest_sample("hoeffding", 1e-9, 0.05) == pytest.approx(1.4978661e18)


def test_one_example_is_enough_where_the_levels_are_lax():
    assert smallest_sample("binomial", 0.9, 0.5) == 1


@given(
    st.sampled_from(["hoeffding", "hoeffding_bentkus"]),
    st.lists(st.floats(0, 1), min_size=2, max_size=60),
    st.floats(0.01, 0.5),
)
def test_upper_bound_is_where_the_test_turns(bound, losses, error):
    upper = risk_upper_bound(bound, losses, error)
    assert sum(losses) / len(losses) <= upper + 1e-9
    if upper < 1 - 1e-5:
        assert BOUNDS[bound](losses, upper + 1e-6) <= error + 1e-9
    below = upper - 1e-6
    if below > max(1e-6, sum(losses) / len(losses)):
        assert BOUNDS[bound](losses, below) > error - 1e-6


def test_upper_bound_by_hand():
    # Hoeffding: mean + sqrt(ln(1/ε) / 2n)
    expected = 0.1 + math.sqrt(math.log(20) / 400)
    assert risk_upper_bound("hoeffding", [0.1] * 200, 0.05) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("bound", list(BOUNDS))
@pytest.mark.parametrize(("losses", "message"), [([], "no losses"), ([0, 2], "from 0 to 1"), ([-1, 0], "from 0 to 1")])
def test_losses_that_are_none(bound, losses, message):
    with pytest.raises(ValueError, match=message if bound != "binomial" or not losses else "."):
        BOUNDS[bound](losses, 0.1)


def rows(page, first):
    """The rows of a table on the page after the one that begins with a cell, as numbers where they are."""
    table = page[page.index(f"| {first} |") :].split("\n\n")[0]
    return [re.findall(r"[\d.]+", row) for row in table.splitlines()]


def test_the_numbers_of_examples_on_the_page():
    page = (Path(__file__).parents[2] / "docs" / "calibration.md").read_text(encoding="utf-8")
    for tolerance, *numbers in rows(page, "δ")[2:]:
        expected = [smallest_sample(bound, float(tolerance), 0.05) for bound in ("hoeffding", "hoeffding_bentkus")]
        assert list(map(int, numbers)) == expected
    examples, _, means = rows(page, "n")
    for number, mean in zip(map(int, examples), map(float, means), strict=True):
        assert hoeffding_bentkus([max(0, mean - 0.0005)] * number, 0.05) <= 0.05
        assert hoeffding_bentkus([mean + 0.0005] * number, 0.05) > 0.05
