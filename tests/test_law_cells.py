"""The table of laws × strategies × ways to decode is complete, and what is left out of it is left out for a reason."""

import importlib
import inspect
import pkgutil
from itertools import product

import hsdlab.strategies
from hsdlab import HSD, SkipStrategy
from hsdlab import testing as laws
from hsdlab.testing import law_2_never_skip, law_3_replay, law_4_trace, law_7_rows, law_8_config, not_applicable
from tests.law_cells import ALL, CELLS, HARD, IN_FULL, IN_TURNS, PRODUCT, SETTINGS, cells, ids, in_make_test

EVERY_WAY = {"greedy", "beam", "sampling"}
NO_FULL_DEPTH = "never_skip() is None: no setting of the class is full depth"
ORACLE = "an oracle reads layers that it reports as not run (is_oracle)"
DRAWN_TOGETHER = "transformers draws the random numbers of sampling for the batch as a whole"
BEAMS_REFUSED = "beam search cannot be verified, and is refused"
SEVERAL_TOKENS = "a pass makes several tokens; tests/decoding/test_verified.py has laws of its own"
BY_PLACE = "rows_depend: a row's layers are drawn by its place in the batch"
EXIT_TOGETHER = "rows_depend: exit_rule={!r}: all sequences of a batch exit together"


def test_the_table_holds_every_strategy_of_the_package():
    for module in pkgutil.walk_packages(hsdlab.strategies.__path__, "hsdlab.strategies."):
        importlib.import_module(module.name)

    def leaves(cls):
        return {cls, *(leaf for sub in cls.__subclasses__() for leaf in leaves(sub))}

    found = {c for c in leaves(SkipStrategy) if not inspect.isabstract(c) and c.__module__.startswith("hsdlab.")}
    found = {c for c in found if not c.__module__.startswith("hsdlab.testing.")}
    assert found == set(SETTINGS)


def reasons_of_the_table():
    """By hand: where a law says nothing about a strategy."""
    missing = {}
    for strategy in ALL:
        name = ids(strategy)
        if name.startswith(("OracleExit(", "Changing(", "ChangingParts(", "ChangingPrompt(")):
            missing |= {(law_2_never_skip, name, mode): NO_FULL_DEPTH for mode in EVERY_WAY}
        if name.startswith("OracleExit("):
            missing |= {(law, name, mode): ORACLE for law in (law_3_replay, law_4_trace) for mode in EVERY_WAY}
        missing[law_7_rows, name, "sampling"] = DRAWN_TOGETHER
        for rule in ("min", "mean"):
            if f"exit_rule='{rule}'" in name:
                missing |= {(law_7_rows, name, mode): EXIT_TOGETHER.format(rule) for mode in EVERY_WAY}
        if name.startswith("Verified("):
            pass_by_pass = (law_2_never_skip, law_3_replay, law_4_trace)
            missing |= {(law, name, mode): SEVERAL_TOKENS for law in pass_by_pass for mode in EVERY_WAY}
            missing |= {(law, name, "beam"): BEAMS_REFUSED for law in laws.LAWS_OF_A_DECODE}
        if name.startswith(("RandomPlan(", "RandomParts(")):
            missing |= {(law_7_rows, name, mode): BY_PLACE for mode in EVERY_WAY}
    return missing


def test_what_is_not_collected_does_not_apply_and_nothing_else_is_missing():
    collected = [tuple(cell.values) for cell in cells()]
    assert len(set(collected)) == len(collected)
    missing = {
        (law, ids(strategy), mode): not_applicable(law, strategy, mode)
        for law, strategy, mode in PRODUCT
        if any((family, law, strategy, mode) not in collected for family in laws.TINY_FAMILIES)
    }
    assert missing == reasons_of_the_table()
    assert len(collected) == len(laws.TINY_FAMILIES) * (len(PRODUCT) - len(missing))


def test_the_product_is_of_all_laws_settings_and_ways():
    assert laws.MODES.keys() == EVERY_WAY
    assert [law.__name__[:5] for law in laws.LAWS_OF_A_DECODE] == [f"law_{n}" for n in range(2, 8)]
    assert {(law, ids(strategy), mode) for law, strategy, mode in PRODUCT} == {
        (law, ids(strategy), mode) for law in laws.LAWS_OF_A_DECODE for strategy in ALL for mode in EVERY_WAY
    }


def test_the_short_suite_keeps_every_law_on_every_strategy_and_on_every_family():
    short = [cell.values for cell in cells() if in_make_test(*cell.values)]
    assert len(short) == sum(not any(mark.name == "slow" for mark in cell.marks) for cell in cells())
    assert len(short) < len(CELLS) * len(laws.TINY_FAMILIES) / 4
    of_one = {cell[1:] for cell in short if cell[0] == IN_FULL}
    assert {(law, strategy) for law, strategy, _ in of_one} == {(law, strategy) for law, strategy, _ in CELLS}
    assert of_one >= {cell for cell in CELLS if cell[0] in (law_3_replay, law_4_trace)}
    for family in IN_TURNS:
        hard = {cell[1:] for cell in short if cell[0] == family and cell[2] in HARD}
        assert hard == {cell for cell in of_one if cell[1] in HARD}
    taking_turns = [cell for cell in short if cell[0] != IN_FULL and cell[2] not in HARD]
    assert {(family, law) for family, law, _, _ in taking_turns} == set(product(IN_TURNS, laws.LAWS_OF_A_DECODE))
    assert {(family, mode) for family, _, _, mode in taking_turns} == set(product(IN_TURNS, EVERY_WAY))
    rest = {(law, strategy) for law, strategy, _ in CELLS if strategy not in HARD}
    assert {(law, strategy) for _, law, strategy, _ in taking_turns} == rest
    assert len({(law, strategy, family) for family, law, strategy, _ in taking_turns}) == 2 * len(rest)


def test_a_class_inside_a_function_has_no_config():
    class Inside(HSD):
        pass

    assert not_applicable(law_8_config, Inside()) == "a config cannot name a class that is defined inside a function"
    assert [not_applicable(law_8_config, strategy) for strategy in ALL] == [None] * len(ALL)
