"""Which strategy is held to which law, on which family and in which way to decode."""

import itertools
from pathlib import Path

import pytest

from hsdlab import (
    CALM,
    HSD,
    PABEE,
    Compose,
    DeeBERT,
    FullDepth,
    LearnedExit,
    OracleExit,
    SkipDecode,
    SkipStrategy,
    StaticDepth,
    SubLayerStrategy,
    Verified,
)
from hsdlab import testing as laws
from tests.strategies_for_tests import Changing, ChangingParts, ChangingPrompt, RandomParts, RandomPlan

# Random weights for the width of the tiny models.
CLASSIFIER = str(Path(__file__).parent / "exit_classifier_32.safetensors")
ROUTER = str(Path(__file__).parent / "exit_router_32.safetensors")  # the same, for exits after layers 0 to 4
SETTINGS = {
    FullDepth: [FullDepth()],
    SkipDecode: [
        SkipDecode(min_exit=1, max_exit=4),
        SkipDecode(0, 6, warmup=2, decay="step"),
        SkipDecode(1, 4, warmup=0, prompt_min_exit=0, prompt_max_exit=3),
    ],
    HSD: [
        HSD(),
        HSD(num_skipped=2, min_exit=0, max_exit=4, decay="cosine"),
        HSD(2, 0, 4, prompt_min_exit=1, prompt_max_exit=5),
    ],
    StaticDepth: [StaticDepth(3), StaticDepth(4, keep="bottom")],
    SubLayerStrategy: [SubLayerStrategy(), SubLayerStrategy(skipped_attention=[0, 2, 5], skipped_mlp=[1, 2])],
    CALM: [
        CALM(threshold=0.5),
        CALM(schedule="depth", slope=0.2),
        CALM(threshold=0.6, schedule="time", form="t5x"),
        CALM(threshold=0.5, measure="saturation", exit_rule="source_mean"),
        CALM(threshold=0.6, measure="classifier", classifier=CLASSIFIER),
        CALM(threshold=0.4, probe_layers=2, shortlist=8),
        CALM(threshold=0.5, probe_layers=[0, 2, 3], gate=0.5, exit_rule="min", check_vocabulary=40),
        CALM(threshold=0.3, late_exit=True),
    ],
    DeeBERT: [
        DeeBERT(threshold=0.8, check_vocabulary=50),
        DeeBERT(threshold=0.7, shortlist=8, exit_rule="mean"),
        DeeBERT(threshold=0.6, gate=0.3, exit_rule="source_min", late_exit=True),
    ],
    PABEE: [
        PABEE(patience=1, exit_rule="source_min"),
        PABEE(patience=1, probe_layers=2, shortlist=8, check_vocabulary=40),
    ],
    LearnedExit: [
        LearnedExit(ROUTER),
        LearnedExit(ROUTER, 0.45, probe_layers=[1, 2, 4], exit_rule="source_min", late_exit=True),
    ],
    Compose: [
        Compose(HSD(2, 0, 4), CALM(0.5)),
        Compose(HSD(1, 0, 3), PABEE(patience=1, shortlist=8, late_exit=True)),
        Compose(HSD(1, 0, 4), LearnedExit(ROUTER, 0.45)),
        Compose(SkipDecode(2, 5, warmup=2), CALM(0.4, measure="saturation", probe_layers=2)),
        Compose(HSD(1, 0, 5, prompt_min_exit=0, prompt_max_exit=3), CALM(0.5)),
    ],
    Verified: [
        Verified(HSD(2, 0, 4)),
        Verified(CALM(0.5), num_draft_tokens=6, adaptive=True),
        Verified(StaticDepth(4, keep="bottom"), 3, stop_below=0.2, draft_vocabulary=20),
    ],
    OracleExit: [OracleExit(), OracleExit("full")],
}
# They need what the published strategies do not: late keys and values of any pattern, early exits within sub-layers.
HARD = [RandomPlan(share=0.5), ChangingPrompt()]
OTHERS = [Changing(), RandomParts(share=0.5), ChangingParts(), Compose(SubLayerStrategy([1, 3], [2, 3]), CALM(0.4))]
ALL = [setting for settings in SETTINGS.values() for setting in settings] + HARD + OTHERS

PRODUCT = list(itertools.product(laws.LAWS_OF_A_DECODE, ALL, laws.MODES))
"""Every law, strategy and way to decode; the same for each family."""

CELLS = [cell for cell in PRODUCT if laws.not_applicable(*cell) is None]
"""Those that are tests: the law applies."""

WAYS = {pair: [mode for _, _, mode in group] for pair, group in itertools.groupby(CELLS, key=lambda cell: cell[:2])}
"""The ways to decode that are tests of a law and a strategy."""

IN_FULL = "llama"
IN_EVERY_WAY = [laws.law_3_replay, laws.law_4_trace]
IN_TURNS = [family for family in laws.TINY_FAMILIES if family != IN_FULL]
"""`make test` holds one family to everything; the others take turns."""


def in_make_test(family, law, strategy, mode):
    """Whether a cell is part of `make test`; `make test-all` runs them all.

    One family is held to every law with every strategy, and all families with the hard strategies: to the laws of
    replay and trace in every way to decode, to the others in one. Each further strategy takes turns: every third family
    is held to all laws with it, in one way to decode, and the next such family in the next way.
    """
    ways = WAYS[law, strategy]
    if strategy in HARD or family == IN_FULL:
        return law in IN_EVERY_WAY or mode == ways[ALL.index(strategy) % len(ways)]
    turn = IN_TURNS.index(family) + ALL.index(strategy)
    return turn % 3 == 0 and mode == ways[turn // 3 % len(ways)]


def by_family(settings):
    """The parameters ``family_model`` and one more of tests that `make test` runs on one family, the others in turns.

    Args:
        settings: Strategies, or whatever else a test is given beside the model; tuples for several parameters.
    """
    for family, (number, setting) in itertools.product(laws.TINY_FAMILIES, enumerate(settings)):
        marks = [pytest.mark.xdist_group(family)]
        if family != IN_FULL and (IN_TURNS.index(family) + number) % 3:
            marks.append(pytest.mark.slow)
        yield pytest.param(family, *(setting if isinstance(setting, tuple) else [setting]), marks=marks)


def in_turns(settings, every):
    """Parameters of which `make test` takes each so many-th, and `make test-all` all."""
    for number, setting in enumerate(settings):
        marks = [pytest.mark.slow] * (number % every > 0)
        yield pytest.param(*(setting if isinstance(setting, tuple) else [setting]), marks=marks)


def cells():
    """The parameters ``family_model, law, strategy, mode`` of the tests; one worker runs all tests of a family."""
    for family, cell in itertools.product(laws.TINY_FAMILIES, CELLS):
        marks = [pytest.mark.xdist_group(family)]
        if not in_make_test(family, *cell):
            marks.append(pytest.mark.slow)
        yield pytest.param(family, *cell, marks=marks)


def ids(value):
    return repr(value) if isinstance(value, SkipStrategy) else getattr(value, "__name__", str(value))
