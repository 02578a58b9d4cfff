"""The search for quality at a speed: settings whose ideal speed-up is large enough are scored."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from hsdlab.decoding.forced import LayerSchedule
from hsdlab.strategies import ScheduledStrategy
from hsdlab.tuning.proposals import try_settings

if TYPE_CHECKING:
    import optuna


@dataclass(frozen=True)
class Setting:
    """A setting that was proposed.

    Attributes:
        strategy: The strategy with these parameters.
        average_layers: Layers per decode step that its schedule runs on the texts of full depth.
        ideal_speedup: Its largest possible speed-up on these texts (`ideal_speedup` of hsdlab.decoding.cost).
        score: Mean negative log-likelihood of full depth's tokens under it, in nats. None where the ideal speed-up is
            too small to be scored. NaN where the model gives none.
    """

    strategy: ScheduledStrategy
    average_layers: float
    ideal_speedup: float
    score: float | None = None


def search(
    classes: Sequence[type[ScheduledStrategy]],
    *,
    num_layers: int,
    max_steps: int,
    cost: Callable[[Tensor], tuple[float, float]],
    score: Callable[[ScheduledStrategy, LayerSchedule], float],
    least_ideal_speedup: float,
    trials: Iterable[Any],
    seed: int,
    first: Sequence[ScheduledStrategy] = (),
) -> list[Setting]:
    """Search for settings on the frontier of a large ideal speed-up and a low score.

    The proposals come from :func:`~hsdlab.tuning.proposals.try_settings`, with two objectives.

    Args:
        classes: Strategy classes whose `propose` makes the settings.
        num_layers: L.
        max_steps: T.
        cost: Computes average layers and ideal speed-up of the decode steps, from a BoolTensor [T, layers].
        score: Computes the score of a setting in nats, from it and its schedule. It is called once for each schedule.
        least_ideal_speedup: Settings with a smaller ideal speed-up are not scored.
        trials: As for `try_settings`.
        seed: Likewise.
        first: Likewise.

    Returns:
        All different settings, in the order in which they were tried.

    Raises:
        UserError: A class whose layers are not known before a step.
        RunError: Optuna is not installed.
    """

    def judge(strategy: ScheduledStrategy, schedule: LayerSchedule) -> Setting:
        layers, speedup = cost(schedule.steps)
        return Setting(strategy, layers, speedup, score(strategy, schedule) if speedup >= least_ideal_speedup else None)

    return try_settings(
        classes,
        num_layers=num_layers,
        max_steps=max_steps,
        directions=["maximize", "minimize"],
        judge=judge,
        tell=lambda study, trial, setting: _tell(study, trial, setting, least_ideal_speedup),
        trials=trials,
        seed=seed,
        first=first,
    )


def _tell(study: "optuna.Study", trial: "optuna.Trial", setting: Setting, least_ideal_speedup: float) -> None:
    """Tell the sampler whether its proposal was pruned, failed or scored."""
    from optuna.trial import TrialState

    trial.set_constraint("speedup", least_ideal_speedup - setting.ideal_speedup)  # positive: pruned
    if setting.score is None:
        study.tell(trial, state=TrialState.PRUNED)
    elif not math.isfinite(setting.score):
        study.tell(trial, state=TrialState.FAIL)
    else:
        study.tell(trial, [setting.ideal_speedup, setting.score])
