"""Fixed-sequence testing, and its guarantee in a simulation with known risks."""

import numpy as np
import pytest
from scipy.stats import binom

from hsdlab.calibration import BOUNDS, fixed_sequence, fixed_sequence_test, risk_upper_bound

TOLERANCE, ERROR, EXAMPLES, DRAWS = 0.1, 0.1, 150, 2000


def losses_with(ones: int, number: int = 100) -> list[float]:
    return [1.0] * ones + [0.0] * (number - ones)


def test_the_last_setting_before_the_first_failure_is_chosen():
    settings = [("a", losses_with(0)), ("b", losses_with(1)), ("c", losses_with(30)), ("d", losses_with(0))]
    result = fixed_sequence_test(settings, tolerance=0.1, error=0.05)
    assert result.chosen == "b"
    assert [(test.setting, test.passed) for test in result.tests] == [("a", True), ("b", True), ("c", False)]
    assert result.tests[1].mean_loss == pytest.approx(0.01)
    assert result.tests[2].p_value == BOUNDS["hoeffding_bentkus"](losses_with(30), 0.1)


def test_full_model_where_the_first_fails():
    assert fixed_sequence_test([("a", losses_with(50))], tolerance=0.1, error=0.05).chosen is None


def test_all_pass():
    result = fixed_sequence_test([("a", losses_with(0)), ("b", losses_with(0))], tolerance=0.1, error=0.05)
    assert result.chosen == "b"


def test_nothing_is_computed_after_the_first_failure():
    asked = []

    def lazily():
        for name, ones in (("a", 0), ("b", 60), ("c", 0)):
            asked.append(name)
            yield name, losses_with(ones)

    fixed_sequence_test(lazily(), tolerance=0.1, error=0.05)
    assert asked == ["a", "b"]


def test_each_step_is_a_result_that_may_be_kept():
    settings = [("a", losses_with(0)), ("b", losses_with(1)), ("c", losses_with(30)), ("d", losses_with(0))]
    steps = list(fixed_sequence(settings, tolerance=0.1, error=0.05))
    assert [(step.chosen, len(step.tests)) for step in steps] == [("a", 1), ("b", 2), ("b", 3)]
    assert steps[-1] == fixed_sequence_test(settings, tolerance=0.1, error=0.05)
    last = steps[-1].tests[-1]
    assert steps[-1].upper_bound(last) == risk_upper_bound("hoeffding_bentkus", losses_with(30), 0.05) > 0.3
    assert fixed_sequence_test([], tolerance=0.1, error=0.05).chosen is None


@pytest.mark.parametrize(
    ("changed", "message"),
    [({"tolerance": 0.0}, "tolerance=0.0"), ({"error": 1.0}, "error=1.0"), ({"bound": "student"}, "bound='student'")],
)
def test_levels_out_of_range(changed, message):
    with pytest.raises(ValueError, match=message):
        fixed_sequence_test([("a", [0.0])], **{"tolerance": 0.1, "error": 0.1} | changed)


# The guarantee: with risks that are known, the chosen one is larger than the tolerance in at most ε of the draws.


def draws(binary: bool):
    """2,000 samples of losses under five settings; the fourth is the first that is not safe, by a hair."""
    risks = np.array([0.005, 0.01, 0.02, 0.101, 0.2])
    generator = np.random.default_rng(0)
    for _ in range(DRAWS):
        if binary:
            yield risks, (generator.random((5, EXAMPLES)) < risks[:, None]).astype(float)
        else:  # Beta with a mean of the risk, most of it near 0 and 1: the hardest case of bounded losses
            yield risks, generator.beta(0.2 * risks[:, None], 0.2 * (1 - risks[:, None]), (5, EXAMPLES))


def violations(bound: str, binary: bool, choose) -> int:
    """In how many draws the chosen setting's risk is larger than the tolerance."""
    count = 0
    for risks, samples in draws(binary):
        result = fixed_sequence_test(
            enumerate(map(list, samples)),
            tolerance=TOLERANCE,
            error=ERROR,
            bound=bound,
        )
        chosen = choose(result)
        count += chosen is not None and risks[chosen] > TOLERANCE
    return count


ALLOWANCE = int(binom.ppf(0.999, DRAWS, ERROR))  # a true rate of ε would stay below it in 999 of 1,000 test runs


@pytest.mark.parametrize(
    ("bound", "binary"),
    [("hoeffding", True), ("hoeffding_bentkus", True), ("hoeffding_bentkus", False), ("binomial", True)],
)
def test_the_guarantee_holds(bound, binary):
    assert violations(bound, binary, lambda result: result.chosen) <= ALLOWANCE


def first_failing(result):
    """The error of public code: return the setting at which the test stopped."""
    return result.tests[-1].setting


def test_the_simulation_catches_a_broken_choice():
    assert violations("binomial", True, first_failing) > 5 * ALLOWANCE


def test_the_simulation_is_not_idle():
    """The exact test uses the error that it is granted: a bound that never let anything pass would be safe too."""
    assert violations("binomial", True, lambda result: result.chosen) > 0.3 * ERROR * DRAWS
