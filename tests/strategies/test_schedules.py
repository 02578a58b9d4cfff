"""What the schedules are, on hand-computed values."""

import inspect
import itertools

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import hsdlab
from hsdlab import HSD, FullDepth, SkipDecode
from hsdlab.decoding.sub_layers import step_mask
from hsdlab.strategies.budget import DECAYS, budget

SCHEDULED = [
    name
    for name, value in vars(hsdlab.strategies).items()
    if isinstance(value, type) and issubclass(value, hsdlab.ScheduledStrategy) and not inspect.isabstract(value)
]


def test_hsd_keeps_every_layer_of_the_hierarchy_and_the_top():
    assert HSD(1, 0, 18).layers_at(0, 36, 30) == (*range(0, 18, 2), *range(18, 36))
    assert HSD(2, 0, 18).layers_at(28, 36, 30) == (*range(0, 36, 3), 35)
    assert HSD().layers_at(0, 36, 150) == HSD(1, 0, 18).layers_at(0, 36, 150)  # default: half of the layers
    assert HSD(35, 2, 8).layers_at(3, 36, 30) == SkipDecode(2, 8, warmup=1).layers_at(3, 36, 30)


def test_skipdecode_runs_the_warm_up_and_the_top():
    assert SkipDecode(10, 20).layers_at(0, 36, 150) == (0, *range(16, 36))
    assert SkipDecode(10, 20, warmup=3).layers_at(149, 36, 150) == (0, 1, 2, *range(26, 36))


def test_skipdecodes_defaults_are_the_papers_setting_in_proportion():
    assert [SkipDecode().exits_on(layers) for layers in (36, 30, 12)] == [(10, 20), (8, 17), (3, 7)]
    assert SkipDecode().layers_at(0, 36, 150) == SkipDecode(10, 20).layers_at(0, 36, 150)
    assert SkipDecode(max_exit=24).exits_on(36) == (10, 24)  # the paper's other setting
    assert SkipDecode(max_exit=2).exits_on(36) == (2, 2)
    assert SkipDecode(min_exit=30).exits_on(36) == (30, 30)
    assert SkipDecode(min_exit=None).exits_on(12) == (12, 12)  # None is still all layers


@pytest.mark.parametrize("num_layers", range(1, 49))
@pytest.mark.parametrize("name", SCHEDULED)
def test_defaults_fit_every_depth(name, num_layers):
    strategy = getattr(hsdlab, name)()
    for layers in strategy.scheduled_layers(num_layers, 10):
        assert step_mask(layers, num_layers)[-1].all()
    assert step_mask(strategy.never_skip().layers_at(0, num_layers, 10), num_layers).all()


def test_resolved_settings_have_numbers_and_the_same_layers():
    calm = hsdlab.CALM()
    for open_setting, name in [
        (HSD(), "HSD(num_skipped=1, min_exit=0, max_exit=15)"),
        (SkipDecode(), "SkipDecode(min_exit=8, max_exit=17, warmup=1)"),
        (hsdlab.StaticDepth(), "StaticDepth(number=15)"),
        (
            hsdlab.Compose(HSD(), calm),
            f"Compose(schedule=HSD(num_skipped=1, min_exit=0, max_exit=15), confidence={calm!r})",
        ),
    ]:
        resolved = open_setting.resolved(30)
        assert repr(resolved) == name
        assert resolved.scheduled_layers(30, 10) == open_setting.scheduled_layers(30, 10)
    assert calm.resolved(30) is calm


def test_auto_is_no_part_of_a_name_and_survives_yaml():
    assert repr(SkipDecode()) == "SkipDecode(warmup=1)"
    config = yaml.safe_load(yaml.safe_dump(SkipDecode(min_exit=2).config()))
    open_prompt = {"prompt_min_exit": None, "prompt_max_exit": None}
    assert config["init_args"] == {"min_exit": 2, "max_exit": "auto", "warmup": 1, "decay": "linear"} | open_prompt


def test_budget_rounds_as_python_does_and_never_reaches_zero():
    assert [budget(t, 4, 0, 2) for t in range(4)] == [2, 2, 1, 1]  # 2, 1.5, 1, 0.5 -> 2, 2, 1, max(1, 0)
    assert budget(5, 5, 0, 10) == 1


@pytest.mark.parametrize("decay", DECAYS)
def test_decays_fall_from_one_end_to_the_other(decay):
    assert DECAYS[decay](0.0) == pytest.approx(0)
    assert DECAYS[decay](1.0) == pytest.approx(1)
    values = [DECAYS[decay](i / 100) for i in range(101)]
    assert all(b >= a for a, b in itertools.pairwise(values))


@given(
    num_layers=st.integers(1, 48),
    steps=st.integers(2, 60),
    skipped=st.integers(0, 50),
    exits=st.tuples(st.integers(0, 48), st.integers(0, 48)),
    warmup=st.integers(0, 5),
    decay=st.sampled_from(sorted(DECAYS)),
)
def test_schedules_shrink_and_keep_the_last_layer(num_layers, steps, skipped, exits, warmup, decay):
    low, high = sorted(min(e, num_layers) for e in exits)
    for strategy in (HSD(skipped, low, high, decay), SkipDecode(low, high, min(warmup, num_layers), decay)):
        schedule = strategy.scheduled_layers(num_layers, steps)
        for layers in schedule:
            assert list(layers) == sorted(set(layers))
            assert layers[-1] == num_layers - 1
        assert all(set(later) <= set(earlier) for earlier, later in itertools.pairwise(schedule))
        assert strategy.never_skip().layers_at(0, num_layers, steps) == FullDepth().layers_at(0, num_layers, steps)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: HSD(num_skipped=-1), "num_skipped=-1"),
        (lambda: HSD(min_exit=-2), "min_exit=-2"),
        (lambda: HSD(min_exit=9, max_exit=4), "min_exit=9 is larger than max_exit=4"),
        (lambda: HSD(decay="log"), "expected one of linear, cosine"),
        (lambda: HSD(max_exit=2.5), "max_exit=2.5"),
        (lambda: HSD(min_exit=None), "min_exit=None; expected a number of layers, 0 or more"),
        (lambda: SkipDecode(max_exit="half"), "max_exit='half'; expected a number of layers, 0 or more, or 'auto', or"),
        (lambda: SkipDecode(20, 10), "min_exit=20 is larger than max_exit=10"),
        (lambda: SkipDecode(warmup=-1), "warmup=-1"),
    ],
)
def test_bad_parameters_are_refused_when_made(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "strategy",
    [HSD(max_exit=31), SkipDecode(10, 31), HSD(min_exit=20, max_exit=None), SkipDecode(0, 20, warmup=31)],
    ids=repr,
)
def test_a_setting_beyond_the_model_is_refused_with_the_models_layers(strategy):
    with pytest.raises(ValueError, match="30 layers"):
        strategy.layers_at(0, 30, 50)
