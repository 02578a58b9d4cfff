"""Law 10: ``check_strategy`` accepts good strategies and rejects broken ones, each by the law that it breaks."""

from dataclasses import replace

import pytest
import torch

from hsdlab import CALM, HSD, FullDepth, OracleExit, SkipDecode
from hsdlab import testing as laws
from hsdlab.testing import LawViolationError, RememberedDecodes, check_strategy, tiny_model
from tests import strategies_for_tests as broken

ALL_LAWS = {*(law.__name__ for law in laws.LAWS_OF_A_DECODE), "law_8_config", "law_9_knob"}


class Local:
    """Holds a strategy that no config can name."""

    @staticmethod
    def strategy():
        class Inside(HSD):
            def never_skip(self):
                return type(self)(num_skipped=0)

        return Inside()


@pytest.mark.parametrize(
    ("strategy", "without"),
    [
        (FullDepth(), {"law_9_knob"}),
        (HSD(), set()),
        (SkipDecode(min_exit=1, max_exit=4), set()),
        (CALM(0.9), set()),
        (CALM(0.5, exit_rule="min"), {"law_7_rows"}),
        (broken.Changing(), {"law_2_never_skip", "law_9_knob"}),
        (broken.RandomPlan(), {"law_7_rows"}),
        (OracleExit(), {"law_2_never_skip", "law_3_replay", "law_4_trace", "law_9_knob"}),
        (Local.strategy(), {"law_8_config"}),
    ],
    ids=lambda value: "without " + ", ".join(sorted(value)) if isinstance(value, set) else repr(value),
)
def test_accepts_good_strategies_and_says_what_it_did_not_check(strategy, without):
    report = check_strategy(strategy, tiny_model(num_layers=4))
    assert set(report.checked) == ALL_LAWS - without
    assert set(report.not_applicable) == (without if "law_7_rows" in without else without | {"law_7_rows (sampling)"})
    assert all(report.not_applicable.values())


@pytest.mark.slow
def test_without_a_model_it_takes_one_of_24_layers():
    assert set(check_strategy(HSD(num_skipped=1, min_exit=0, max_exit=20)).checked) == ALL_LAWS


def test_the_report_reads_well():
    assert str(check_strategy(broken.RandomPlan(), tiny_model(num_layers=2))) == (
        "Checked: law_2_never_skip, law_3_replay, law_4_trace, law_5_restored, law_6_no_state, law_8_config, "
        "law_9_knob.\n"
        "Not applicable:\n"
        "  law_7_rows: rows_depend: a row's layers are drawn by its place in the batch"
    )


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
        check_strategy(strategy, tiny_model(num_layers=4))


def test_settings_are_put_in_order():
    with pytest.raises(LawViolationError, match="more layers"):
        check_strategy(HSD(2), tiny_model(num_layers=4), settings=[HSD(2), HSD(1)])


# What laws look at -------------------------------------------------------------------------------------------------


def test_hooks_tell_layers_that_ran_from_late_keys_and_values(family_model):
    """On every family: its attention and feed-forward part are found, and stopped attention does not count as run."""
    full = laws.decode(family_model, FullDepth(), eos_token_id=None).passes
    assert full.tokens_run == full.tokens_attended == [[15] * 6] + [[3] * 6] * 7  # 3 prompts of 5 tokens, 8 new tokens
    assert full.tokens_late == [[0] * 6] * 8
    some = laws.decode(family_model, broken.Changing(), eos_token_id=None).passes
    runs = [[3 * ((layer + step) % 3 != 0) for layer in range(6)] for step in range(7)]
    assert some.tokens_run[1:] == some.tokens_attended[1:] == runs
    # A layer that runs after a step without it makes the keys and values of that step's three tokens.
    assert some.tokens_late[1:] == [
        [3 * (step > 0 and (layer + step) % 3 == 1) for layer in range(6)] for step in range(7)
    ]


@pytest.mark.parametrize("mode", laws.MODES)
@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ("tokens_run", "feed-forward parts"),
        ("tokens_attended", "attention"),
        ("tokens_late", "late keys and values"),
    ],
)
def test_law_4_compares_each_count(tiny, mode, counts, message):
    def miscounted(*args, **options):
        seen = laws.decode(*args, **options)
        first, *others = getattr(seen.passes, counts)
        return replace(
            seen, passes=replace(seen.passes, **{counts: [first, [others[0][0] + 1, *others[0][1:]], *others[1:]]})
        )

    laws.law_4_trace(tiny(), broken.Changing(), mode)
    with pytest.raises(LawViolationError, match=message):
        laws.law_4_trace(tiny(), broken.Changing(), mode, miscounted)


# Decodes that are made once ----------------------------------------------------------------------------------------


def test_a_decode_is_made_once_for_equal_arguments(tiny):
    remembered, strategy = RememberedDecodes(), HSD(1, 0, 4)
    first = remembered(tiny(), strategy, "beam", rows=torch.tensor([1]), eos_token_id=None)
    assert remembered(tiny(), HSD(1, 0, 4), "beam", rows=torch.tensor([1]), eos_token_id=None) is first
    others = [
        remembered(tiny("gpt2"), strategy, "beam", rows=torch.tensor([1]), eos_token_id=None),
        remembered(tiny(), HSD(2, 0, 4), "beam", rows=torch.tensor([1]), eos_token_id=None),
        remembered(tiny(), strategy, "greedy", rows=torch.tensor([1]), eos_token_id=None),
        remembered(tiny(), strategy, "beam", rows=torch.tensor([2]), eos_token_id=None),
        remembered(tiny(), strategy, "beam", rows=torch.tensor([1])),
    ]
    assert len({id(decode) for decode in (first, *others)}) == 6
    again = laws.decode(tiny(), strategy, "beam", rows=torch.tensor([1]), eos_token_id=None)
    assert torch.equal(first.output.sequences, again.output.sequences)


def test_what_cannot_be_compared_is_decoded_each_time(tiny):
    remembered, strategy = RememberedDecodes(), Local.strategy()
    strategy.made_here = lambda: None
    assert remembered(tiny(), strategy) is not remembered(tiny(), strategy)


def test_a_remembered_decode_leaves_no_memory_in_the_strategy(tiny):
    remembered, strategy = RememberedDecodes(), broken.CountsItsSteps()
    first = remembered(tiny(), strategy)
    assert strategy.calls == 0
    assert remembered(tiny(), strategy) is first
