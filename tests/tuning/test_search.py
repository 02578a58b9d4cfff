"""The search: it finds what going through all settings finds, and scores nothing in vain."""

import math

import optuna
import pytest

import hsdlab.strategies
from hsdlab import HSD, FullDepth, ScheduledStrategy, SkipDecode, StaticDepth
from hsdlab.decoding.cost import ideal_speedup
from hsdlab.decoding.forced import layer_schedule
from hsdlab.runs.tunable import TUNABLE
from hsdlab.runs.tune import settings_on_the_frontier
from hsdlab.tuning import ReplayScore, search
from tests.tuning.conftest import MAX_STEPS

LAYERS = 6
ALL_STATIC = [
    *(StaticDepth(number) for number in range(2, 7)),
    *(StaticDepth(number, keep=keep) for keep in ("bottom", "top") for number in range(1, 7)),
]


class Half(ScheduledStrategy):
    """A class of one's own."""

    def __init__(self, share: float = 0.5) -> None:
        self.share = share

    @classmethod
    def propose(cls, trial, num_layers, max_steps):
        lower, upper = {"low": (0.1, 0.5), "high": (0.5, 1.0)}[trial.suggest_categorical("decay", ["low", "high"])]
        return cls(trial.suggest_float("share", lower, upper))  # HSD has other decays

    def layers_at(self, step, num_layers, max_steps):
        return range(math.ceil(self.share * num_layers))


class Bottom(ScheduledStrategy):
    """Of its two arguments only one is searched."""

    def __init__(self, number: int = 3, more: int = 0) -> None:
        self.number = number
        self.more = more

    @classmethod
    def propose(cls, trial, num_layers, max_steps):
        return cls(trial.suggest_int("number", 1, num_layers))

    def layers_at(self, step, num_layers, max_steps):
        return range(self.number + self.more)


def layers_of(steps):
    return [step.nonzero().flatten().tolist() for step in steps[:-1]]


def find(classes, *, trials=60, seed=0, least=1.0, scored=None, score=None, first=()):
    """Search with a cost of 1 + layers, and a score that is large where upper layers are left out."""

    def made_up(strategy, schedule):
        if scored is not None:
            scored.append(layers_of(schedule.steps))
        skipped = [i + 1 for step in layers_of(schedule.steps) for i in range(LAYERS) if i not in step]
        return (score or (lambda: sum(skipped) / LAYERS))()

    def cost(steps):
        average = sum(map(len, layers_of(steps))) / (MAX_STEPS - 1)
        return average, (1 + LAYERS) / (1 + average)

    return search(
        classes,
        num_layers=LAYERS,
        max_steps=MAX_STEPS,
        cost=cost,
        score=made_up,
        least_ideal_speedup=least,
        trials=range(trials),
        seed=seed,
        first=first,
    )


def names(settings):
    return [repr(setting.strategy) for setting in settings]


def test_the_frontier_is_that_of_going_through_all_settings(tiny, batch):
    model = tiny("llama")
    replay_score = ReplayScore(model, [batch])
    settings = search(
        [StaticDepth],
        num_layers=LAYERS,
        max_steps=MAX_STEPS,
        cost=lambda steps: (len(layers_of(steps)[0]), ideal_speedup(model, layers_of(steps))),
        score=lambda strategy, schedule: replay_score(schedule),
        least_ideal_speedup=1.0,
        trials=range(80),
        seed=0,
    )
    points = {}
    for strategy in ALL_STATIC:
        layers, score = (
            strategy.layers_at(0, LAYERS, MAX_STEPS),
            replay_score(layer_schedule(strategy, LAYERS, MAX_STEPS)),
        )
        points[layers] = (len(layers), score)
    best = [
        layers
        for layers, (number, score) in points.items()
        if number < LAYERS
        and not any((n, s) != (number, score) and n <= number and s <= score for n, s in points.values())
    ]
    frontier = settings_on_the_frontier(settings)
    assert len(settings) == len(points)
    assert [each.strategy.layers_at(0, LAYERS, MAX_STEPS) for each in frontier] == sorted(best, key=len, reverse=True)
    assert len(frontier) > 2
    assert [each.score for each in frontier] == sorted(each.score for each in frontier)


def test_what_is_too_slow_is_never_scored():
    scored = []
    settings = find([HSD, SkipDecode], least=1.5, scored=scored)
    slow = [setting for setting in settings if setting.ideal_speedup < 1.5]
    assert slow
    assert all(setting.score is None for setting in slow)
    assert len(scored) == len(settings) - len(slow)
    assert names(settings_on_the_frontier(settings)) == [
        name for name in names(settings_on_the_frontier(settings)) if name not in names(slow)
    ]


def test_what_is_given_comes_first_and_counts_as_trials():
    given = [SkipDecode(1, 3), StaticDepth(2, keep="bottom"), SkipDecode(1, 3, warmup=0)]
    settings = find([HSD], trials=8, first=given)
    assert names(settings)[:3] == [repr(each) for each in given]
    assert all(isinstance(each.strategy, HSD) for each in settings[3:])
    assert 3 < len(settings) <= 8
    assert names(find([HSD], trials=5))[:5] == names(settings)[3:]  # the proposals do not depend on them


@pytest.mark.parametrize(
    ("setting", "parameters"),
    [
        (HSD(2, 1, 4, "power"), {"num_skipped": 2, "min_exit": 1, "max_exit": 4, "decay": "power"}),
        (SkipDecode(1, 3), {"min_exit": 1, "max_exit": 3, "warmup": 1, "decay": "linear"}),
        (StaticDepth(3, "top"), {"number": 3, "keep": "top"}),
    ],
    ids=repr,
)
def test_the_estimator_learns_of_what_is_given(monkeypatch, setting, parameters):
    made, create = [], optuna.create_study
    monkeypatch.setattr(optuna, "create_study", lambda **options: made.append(create(**options)) or made[0])
    (found, *_) = find([HSD, SkipDecode, StaticDepth], trials=3, first=[setting])
    assert found.strategy.config() == setting.config()
    (study,) = made
    name = f"{type(setting).__module__}.{type(setting).__qualname__}"
    expected = {f"{name}.{parameter}": value for parameter, value in parameters.items()}
    assert study.trials[0].params == {"strategy": name, **expected}
    assert study.trials[0].values == [found.ideal_speedup, found.score]
    assert len(study.trials) == 3


@pytest.mark.parametrize(
    "setting",
    [
        Half(0.7),
        HSD(),
        SkipDecode(None, None),
        SkipDecode(0, 2, warmup=3),
        HSD(0, 0, 3),
        Bottom(2, more=1),
        FullDepth(),
    ],
    ids=[
        "asks-for-another-value",
        "none",
        "all-layers",
        "out-of-range",
        "never-skips",
        "argument-not-asked-for",
        "not-searched",
    ],
)
def test_what_its_class_would_not_propose_is_tried_all_the_same(monkeypatch, setting):
    made, create = [], optuna.create_study
    monkeypatch.setattr(optuna, "create_study", lambda **options: made.append(create(**options)) or made[0])
    settings = find([HSD, SkipDecode, Half, Bottom], trials=3, first=[setting])
    assert settings[0].strategy is setting
    assert len(made[0].trials) == 2  # it counts as a trial of the search, not of the estimator


def test_equal_schedules_are_scored_once():
    scored = []
    settings = find([StaticDepth], trials=100, scored=scored)
    assert len(scored) == len(settings) == 15  # of 17 settings; some run the same layers
    assert len({str(layers) for layers in scored}) == len(scored)


def test_proposals_depend_on_the_seed_and_a_longer_search_begins_as_a_shorter_one():
    short, long = find([HSD, SkipDecode], trials=30), find([HSD, SkipDecode], trials=60)
    assert names(long)[: len(short)] == names(short)
    assert names(find([HSD, SkipDecode], trials=30, seed=1)) != names(short)
    assert {type(setting.strategy) for setting in short} == {HSD, SkipDecode}


def test_a_class_of_ones_own_needs_one_method_more():
    settings = find([Half, HSD], trials=40)
    assert {type(setting.strategy) for setting in settings} == {Half, HSD}
    assert len({setting.strategy.layers_at(0, LAYERS, 9) for setting in settings if type(setting.strategy) is Half}) > 3


def test_a_score_that_is_no_number_is_not_on_the_frontier():
    settings = find([StaticDepth], score=lambda: math.nan)
    assert len(settings) > 5
    assert settings_on_the_frontier(settings) == []


def test_a_class_that_proposes_nothing_says_what_to_write():
    with pytest.raises(ValueError, match="FullDepth does not say which settings to try: write its classmethod"):
        find([FullDepth])


@pytest.mark.parametrize("cls", [HSD, SkipDecode, StaticDepth])
@pytest.mark.parametrize("num_layers", [2, 3, 6, 30])
def test_every_proposal_fits_the_model(cls, num_layers):
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    settings = [cls.propose(study.ask(), num_layers, 20) for _ in range(60)]
    for setting in settings:
        assert layer_schedule(setting, num_layers, 20).steps.any(dim=1).all()
    for name in settings[0].parameters():
        proposed = {getattr(setting, name) for setting in settings}
        if name.startswith("prompt_"):
            assert proposed == {None}  # the speed-up of the search is that of decode steps
        else:
            assert len(proposed) > 1 or num_layers == 2, name


def test_every_class_of_the_package_that_proposes_is_named_in_the_errors():
    strategies = [value for value in vars(hsdlab.strategies).values() if isinstance(value, type)]
    scheduled = [each for each in strategies if issubclass(each, ScheduledStrategy) and "propose" in vars(each)]
    assert {each.__name__ for each in scheduled} == {ScheduledStrategy.__name__, *TUNABLE}
