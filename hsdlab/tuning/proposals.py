"""What Optuna proposes: settings of scheduled classes, of which each different schedule is tried once."""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from hsdlab.decoding.forced import LayerSchedule, layer_schedule
from hsdlab.errors import UserError
from hsdlab.extras import of_extra
from hsdlab.strategies import ScheduledStrategy

if TYPE_CHECKING:
    import optuna

Tried = TypeVar("Tried")


class _Named:
    """A trial that puts the class before the name of each parameter: two classes may both have a `max_exit`."""

    def __init__(self, trial: "optuna.trial.BaseTrial", name: str) -> None:
        self._trial = trial
        self._name = name

    def __getattr__(self, method: str) -> Any:
        return lambda name, *args, **kwargs: getattr(self._trial, method)(f"{self._name}.{name}", *args, **kwargs)


def check_optuna() -> None:
    """Refuse a search where Optuna, of the extra `tune`, is not installed.

    Raises:
        RunError: Optuna is missing; the message names the command that installs it.
    """
    with of_extra("tune", "`tune`"):
        import optuna  # noqa: F401


def try_settings(
    classes: Sequence[type[ScheduledStrategy]],
    *,
    num_layers: int,
    max_steps: int,
    directions: Sequence[Literal["minimize", "maximize"]],
    judge: Callable[[ScheduledStrategy, LayerSchedule], Tried],
    tell: Callable[["optuna.Study", "optuna.Trial", Tried], None],
    trials: Iterable[Any],
    seed: int,
    first: Sequence[ScheduledStrategy] = (),
) -> list[Tried]:
    """Try the given settings, then those that Optuna's tree-structured Parzen estimator proposes (arXiv 2304.11127).

    The proposals depend on the seed, the judgements and the given settings only. Settings of equal schedules are one
    setting: the first that was proposed. After a repeated schedule the next proposal is drawn at random.

    Args:
        classes: Strategy classes whose `propose` makes the settings.
        num_layers: L.
        max_steps: T.
        directions: "maximize" or "minimize", for each objective.
        judge: Judges a setting, from it and its schedule. It is called once for each schedule.
        tell: Tells the study the objectives of a judged setting, or that it has none.
        trials: One trial is made for each element: `range(100)`, or that under a progress bar, for 100 proposals.
        seed: Seed of the proposals.
        first: Settings to try before any is proposed. They count as trials. The estimator learns from those that
            `propose` could have made with their own parameters.

    Returns:
        What `judge` returned, in the order in which the settings were tried.

    Raises:
        UserError: A class whose layers are not known before a step.
        RunError: Optuna is not installed.
    """
    check_optuna()
    import optuna

    by_name = {f"{each.__module__}.{each.__qualname__}": each for each in classes}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler, at_random = optuna.samplers.TPESampler(seed=seed), optuna.samplers.RandomSampler(seed=seed)
    study = optuna.create_study(directions=list(directions), sampler=sampler)
    found: dict[bytes, Tried] = {}

    def judged(strategy: ScheduledStrategy) -> bytes | None:
        """Judge a setting and return the key of its schedule; None if the schedule was tried before."""
        schedule = layer_schedule(strategy, num_layers, max_steps)
        if schedule is None:
            raise UserError(f"{strategy!r} decides while it decodes; expected layers that are known before a step.")
        key = schedule.content
        if key in found:
            return None
        found[key] = judge(strategy, schedule)
        return key

    given = iter(first)
    for _ in trials:
        if (strategy := next(given, None)) is not None:
            parameters = trial_parameters(strategy, by_name, num_layers, max_steps)
            if parameters is None:
                judged(strategy)
                continue
            study.enqueue_trial(parameters)
        trial = study.ask()
        name = trial.suggest_categorical("strategy", list(by_name))
        key = judged(by_name[name].propose(_Named(trial, name), num_layers, max_steps))
        study.sampler = at_random if key is None else sampler  # else the next proposal may be the same again
        if key is None:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)  # the sampler leaves failed trials out
        else:
            tell(study, trial, found[key])
    return list(found.values())


def trial_parameters(
    strategy: ScheduledStrategy, classes: Mapping[str, type[ScheduledStrategy]], num_layers: int, max_steps: int
) -> dict[str, Any] | None:
    """Express a setting as the parameters of a trial in which its class would propose it.

    A class may draw other values from its trial than it has parameters, and a parameter may be out of the range that it
    draws from. So the class proposes a setting with these parameters, and the result is compared with the setting.

    Args:
        strategy: The setting.
        classes: The classes of the search by the names that they have in it.
        num_layers: L.
        max_steps: T.

    Returns:
        Values by the names of the trial's parameters; None if the class is not in the search, or does not propose the
        setting with its parameters.
    """
    name = next((name for name, cls in classes.items() if cls is type(strategy)), None)
    if name is None:
        return None
    import optuna

    parameters = {f"{name}.{parameter}": value for parameter, value in strategy.parameters().items()}
    fixed = optuna.trial.FixedTrial({"strategy": name, **parameters})
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # Optuna warns of a value out of its range
            proposed = classes[name].propose(_Named(fixed, name), num_layers, max_steps)
    except (ValueError, TypeError, UserWarning):
        return None
    return fixed.params | {"strategy": name} if proposed.config() == strategy.config() else None
