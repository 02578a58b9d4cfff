"""Which layers a schedule runs for the tokens of the prompt, on hand-computed values."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsdlab import CALM, HSD, Compose, FullDepth, SkipDecode, StaticDepth, generate
from hsdlab.strategies.budget import DECAYS, prompt_budget
from hsdlab.testing import prompts, tiny_model

ALL_OF_36 = tuple(range(36))


@pytest.mark.parametrize(
    "strategy", [FullDepth(), HSD(2, 0, 8), SkipDecode(10, 20), StaticDepth(3), Compose(HSD(2, 0, 8), CALM())], ids=repr
)
def test_by_default_every_token_of_the_prompt_runs_all_layers(strategy):
    assert strategy.scheduled_prompt(100, 36) is None  # which costs no time
    if not isinstance(strategy, Compose):
        assert tuple(strategy.prompt_layers(7, 100, 36)) == ALL_OF_36


def test_a_prompt_is_scheduled_token_by_token():
    strategy = HSD(1, 0, 3, prompt_min_exit=0, prompt_max_exit=4)
    assert strategy.scheduled_prompt(3, 6) == [(0, 2, 4, 5), (0, 2, 3, 4, 5), (0, 2, 3, 4, 5)]


class OwnPrompt(HSD):
    def prompt_layers(self, position, prompt_length, num_layers):
        return [position]


def test_a_subclass_may_choose_other_layers_for_the_prompt():
    assert OwnPrompt().scheduled_prompt(3, 6) == [[0], [1], [2]]


def test_hsd_keeps_every_layer_of_the_hierarchy_and_a_budget_at_the_top():
    strategy = HSD(2, 0, 8, prompt_min_exit=0, prompt_max_exit=18)
    assert strategy.prompt_layers(0, 1000, 36) == (*range(0, 36, 3), 35)  # the first token: the budget's minimum
    assert strategy.prompt_layers(999, 1000, 36) == (*range(0, 18, 3), *range(18, 36))  # the last one: its maximum
    assert strategy.prompt_layers(499, 1000, 36) == (*range(0, 27, 3), *range(27, 36))  # half way, 9 layers


def test_skipdecode_runs_the_warm_up_and_a_budget_at_the_top():
    strategy = SkipDecode(10, 20, warmup=2, prompt_min_exit=4, prompt_max_exit=8)
    assert strategy.prompt_layers(0, 8, 36) == (0, 1, *range(32, 36))  # 4.5 of 36, rounded to even
    assert strategy.prompt_layers(7, 8, 36) == (0, 1, *range(28, 36))
    assert strategy.prompt_layers(0, 1, 36) == (0, 1, *range(28, 36))  # a prompt of one token


def test_the_prompt_leaves_the_new_tokens_as_they_were():
    assert HSD(2, 0, 8, prompt_min_exit=0, prompt_max_exit=4).scheduled_layers(36, 9) == HSD(2, 0, 8).scheduled_layers(
        36, 9
    )


def test_the_budget_may_rise_to_all_layers():
    rising = [prompt_budget("HSD", position, 4, 30, prompt_min_exit=10, prompt_max_exit=None) for position in range(4)]
    assert rising == [15, 20, 25, 30]


@given(
    num_layers=st.integers(1, 48),
    length=st.integers(1, 60),
    exits=st.tuples(st.integers(0, 48), st.integers(0, 48)),
    decay=st.sampled_from(sorted(DECAYS)),
)
def test_the_sets_grow_along_the_prompt_and_mirror_those_of_new_tokens(num_layers, length, exits, decay):
    low, high = sorted(min(e, num_layers) for e in exits)
    for new, prompt in (
        (HSD(3, low, high, decay), HSD(3, decay=decay, prompt_min_exit=low, prompt_max_exit=high)),
        (SkipDecode(low, high, 1, decay), SkipDecode(decay=decay, prompt_min_exit=low, prompt_max_exit=high)),
    ):
        along = [prompt.prompt_layers(position, length, num_layers) for position in range(length)]
        assert all(set(earlier) <= set(later) for earlier, later in itertools.pairwise(along))
        assert along[::-1] == [new.layers_at(step, num_layers, length) for step in range(length)]


def test_a_composed_strategy_runs_the_prompt_of_its_schedule():
    schedule = SkipDecode(2, 5, prompt_min_exit=1, prompt_max_exit=3)
    assert Compose(schedule, CALM(0.5)).scheduled_prompt(9, 6) == schedule.scheduled_prompt(9, 6)


@pytest.mark.parametrize("cls", [HSD, SkipDecode])
def test_only_a_prompt_schedule_is_part_of_the_name(cls):
    assert "prompt" not in repr(cls())
    assert repr(cls(prompt_min_exit=0, prompt_max_exit=4)).endswith("prompt_min_exit=0, prompt_max_exit=4)")


@pytest.mark.parametrize(
    "strategy", [HSD(2, 0, 8, prompt_min_exit=0), SkipDecode(prompt_min_exit=0, prompt_max_exit=4)], ids=repr
)
def test_the_setting_that_never_skips_runs_the_whole_prompt(strategy):
    assert tuple(strategy.never_skip().prompt_layers(0, 10, 36)) == ALL_OF_36


@pytest.mark.parametrize("cls", [HSD, SkipDecode])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt_min_exit": 9, "prompt_max_exit": 4}, "prompt_min_exit=9 is larger than prompt_max_exit=4"),
        ({"prompt_max_exit": 4}, "prompt_min_exit=None is larger than prompt_max_exit=4; .* None is all layers"),
        ({"prompt_min_exit": -1}, "prompt_min_exit=-1; expected a number of layers, 0 or more, or None"),
        ({"prompt_min_exit": 0, "prompt_max_exit": "auto"}, "prompt_max_exit='auto'"),
    ],
)
def test_bad_prompt_budgets_are_refused_when_made(cls, arguments, message):
    with pytest.raises(ValueError, match=message):
        cls(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt_min_exit": 0, "prompt_max_exit": 7}, "prompt_max_exit=7 is beyond this model's 6 layers"),
        ({"prompt_min_exit": 7}, "prompt_min_exit=7 is larger than prompt_max_exit=6, on 6 layers"),
    ],
)
@pytest.mark.parametrize("make", [HSD, SkipDecode, lambda **arguments: Compose(HSD(**arguments), CALM())])
def test_a_prompt_budget_beyond_the_model_is_refused_before_it_decodes(make, arguments, message):
    input_ids, mask = prompts(3)
    with pytest.raises(ValueError, match=message):
        generate(tiny_model(), input_ids=input_ids, attention_mask=mask, strategy=make(**arguments), max_new_tokens=4)
