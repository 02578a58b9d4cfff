"""The search: Optuna proposes settings; those whose schedule allows enough speed are scored."""

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from hsdlab.decoding.forced import schedule_mask
from hsdlab.errors import UserError
from hsdlab.extras import of_extra
from hsdlab.strategies import ScheduledStrategy

if TYPE_CHECKING:
    import optuna


@dataclass(frozen=True)
class Setting:
    """A setting that was proposed.

    Attributes:
        strategy: The setting.
        average_layers: Layers per decode step that its schedule runs over full depth's own texts.
        ideal_speedup: The most that it can gain over them (`ideal_speedup` of hsdlab.decoding.cost).
        score: Mean negative log-likelihood of full depth's tokens under it, nats; None where the schedule allows too
            little speed to be scored, not a number where the score is none.
    """

    strategy: ScheduledStrategy
    average_layers: float
    ideal_speedup: float
    score: float | None = None


class _Named:
    """A trial whose parameters carry the name of their class: two classes may both have a `max_exit`."""

    def __init__(self, trial: "optuna.trial.BaseTrial", name: str) -> None:
        self._trial = trial
        self._name = name

    def __getattr__(self, method: str) -> Any:
        return lambda name, *args, **kwargs: getattr(self._trial, method)(f"{self._name}.{name}", *args, **kwargs)


def check_optuna() -> None:
    """Refuse a search where Optuna, of the extra `tune`, is not installed.

    Raises:
        RunError: It is not; the message names the command that installs it.
    """
    with of_extra("tune", "`tune`"):
        import optuna  # noqa: F401


def search(
    classes: Sequence[type[ScheduledStrategy]],
    *,
    num_layers: int,
    max_steps: int,
    cost: Callable[[Tensor], tuple[float, float]],
    score: Callable[[ScheduledStrategy, Tensor], float],
    least_ideal_speedup: float,
    trials: Iterable[Any],
    seed: int,
    first: Sequence[ScheduledStrategy] = (),
) -> list[Setting]:
    """Try settings for a speed-up as large, and a score as low, as can be had together.

    The proposals come from Optuna's multi-objective tree-structured Parzen estimator (arXiv 2304.11127) and depend on
    the seed, the scores and the given settings only. Settings of equal schedules are one setting: the first that was
    proposed. After one that was there before, the next proposal is drawn at random.

    Args:
        classes: Whose settings are proposed, by their `propose`.
        num_layers: L.
        max_steps: T.
        cost: Gives a schedule's average layers and ideal speed-up, from a mask [T, layers].
        score: Gives the score of a setting, from it and its mask; asked once for each schedule.
        least_ideal_speedup: Settings that cannot be so fast are not scored.
        trials: As long as the search: `range(100)`, or that under a progress bar, for 100 proposals.
        seed: Of the proposals.
        first: Settings that are tried before any is proposed; they count as trials. The estimator learns of those that
            `propose` could have made of their own parameters.

    Returns:
        All different settings, in the order in which they were tried.

    Raises:
        UserError: A class whose layers are not known before a step.
        RunError: Optuna is not installed.
    """
    check_optuna()
    import optuna

    by_name = {f"{each.__module__}.{each.__qualname__}": each for each in classes}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler, at_random = optuna.samplers.TPESampler(seed=seed), optuna.samplers.RandomSampler(seed=seed)
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)
    found: dict[bytes, Setting] = {}

    def tried(strategy: ScheduledStrategy) -> Setting | None:
        """Return the setting, None if its schedule was there before."""
        schedule = schedule_mask(strategy, num_layers, max_steps)
        if schedule is None:
            raise UserError(f"{strategy!r} decides while it decodes; expected layers that are known before a step.")
        key = schedule.numpy().tobytes()
        if key in found:
            return None
        layers, speedup = cost(schedule)
        fast = speedup >= least_ideal_speedup
        found[key] = Setting(strategy, layers, speedup, score(strategy, schedule) if fast else None)
        return found[key]

    given = iter(first)
    for _ in trials:
        if (strategy := next(given, None)) is not None:
            parameters = trial_parameters(strategy, by_name, num_layers, max_steps)
            if parameters is None:
                tried(strategy)
                continue
            study.enqueue_trial(parameters)
        trial = study.ask()
        name = trial.suggest_categorical("strategy", list(by_name))
        setting = tried(by_name[name].propose(_Named(trial, name), num_layers, max_steps))
        study.sampler = at_random if setting is None else sampler  # of the next one: else it repeats itself
        if setting is None:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)  # which the sampler leaves out
        else:
            _tell(study, trial, setting, least_ideal_speedup)
    return list(found.values())


def trial_parameters(
    strategy: ScheduledStrategy, classes: Mapping[str, type[ScheduledStrategy]], num_layers: int, max_steps: int
) -> dict[str, Any] | None:
    """Express a setting as the parameters of a trial in which its class would propose it.

    A class may ask its trial for other values than it has parameters, and a parameter may be out of the range that it
    asks for. So the class proposes a setting by the parameters, and that one is compared.

    Args:
        strategy: The setting.
        classes: The classes of the search, by the names that they have in it.
        num_layers: L.
        max_steps: T.

    Returns:
        The parameters; None if the class is not of the search, or does not propose the setting by them.
    """
    name = next((name for name, cls in classes.items() if cls is type(strategy)), None)
    if name is None:
        return None
    import optuna

    parameters = {f"{name}.{parameter}": value for parameter, value in strategy.parameters().items()}
    fixed = optuna.trial.FixedTrial({"strategy": name, **parameters})
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # which Optuna gives for a value out of its range
            proposed = classes[name].propose(_Named(fixed, name), num_layers, max_steps)
    except (ValueError, TypeError, UserWarning):
        return None
    return fixed.params | {"strategy": name} if proposed.config() == strategy.config() else None


def _tell(study: "optuna.Study", trial: "optuna.Trial", setting: Setting, least_ideal_speedup: float) -> None:
    """Tell the sampler what became of its proposal: pruned, failed or scored."""
    from optuna.trial import TrialState

    trial.set_constraint("speedup", least_ideal_speedup - setting.ideal_speedup)  # positive: pruned
    if setting.score is None:
        study.tell(trial, state=TrialState.PRUNED)
    elif not math.isfinite(setting.score):
        study.tell(trial, state=TrialState.FAIL)
    else:
        study.tell(trial, [setting.ideal_speedup, setting.score])
