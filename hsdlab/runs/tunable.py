"""Which classes `tune` can search, and what it refuses before anything is decoded."""

import sys
from collections.abc import Collection, Sequence
from importlib import import_module
from typing import Any, cast

from hsdlab.errors import UserError
from hsdlab.reasons import reason
from hsdlab.runs.checks import CORPUS_METRICS, check_computed, check_ids
from hsdlab.strategies import ScheduledStrategy, SkipStrategy
from hsdlab.tuning import Goal, check_optuna

TUNABLE = ("HSD", "SkipDecode", "StaticDepth", "SubLayerStrategy")


def scheduled_classes(names: Sequence[str]) -> list[type[ScheduledStrategy]]:
    """Find the strategy classes to tune. A module that a dotted path names is imported.

    Args:
        names: Class names of hsdlab.strategies, or dotted paths of your own classes.

    Returns:
        The classes, in the order of the names.

    Raises:
        UserError: No name, a name of no class or of one that cannot be tuned, or two classes of one short name.
    """
    if not names:
        raise UserError(f"classes is empty; expected some of {', '.join(TUNABLE)}, or a class of your own.")
    classes = [_scheduled_class(name) for name in names]
    short = [each.__name__ for each in classes]
    for name in short:
        if short.count(name) > 1:  # prediction files have the short name
            raise UserError(f"classes lists {name} {short.count(name)} times: expected classes of different names.")
    return classes


def _scheduled_class(name: str) -> type[ScheduledStrategy]:
    expected = f"expected some of {', '.join(TUNABLE)}, or the dotted path of your own, such as my_package.MyClass"
    module, _, class_name = name.rpartition(".")
    if not all(part.isidentifier() for part in name.split(".")):
        raise UserError(f"classes: {name!r} is no name of a class; {expected}.")
    if name.split(".")[0] in sys.stdlib_module_names:  # its import may do anything
        raise UserError(f"classes: {name} is part of Python itself; {expected}.")
    try:
        found = getattr(import_module(module or "hsdlab.strategies"), class_name)
    except (ImportError, AttributeError) as error:
        raise UserError(f"classes: unknown class {name!r}; {expected}.") from error
    except Exception as error:  # a module of the user's may raise what it likes
        raise UserError(f"classes: {name} cannot be imported: {reason(error)}.") from error
    if not isinstance(found, type) or not issubclass(found, SkipStrategy):
        raise UserError(f"classes: {name} is no strategy; {expected}.")
    if not issubclass(found, ScheduledStrategy):
        raise UserError(
            f"classes: {name} is no ScheduledStrategy, and replay scores layers that are known before a step: "
            f"{expected}. `calibrate` goes through a list of settings of any strategies."
        )
    if cast(Any, found.propose).__func__ is cast(Any, ScheduledStrategy.propose).__func__:
        found.propose(cast(Any, None), 0, 0)  # says what to write
    return found


def check_search(
    classes: Sequence[str],
    *,
    max_new_tokens: int,
    examples: Sequence[str],
    first: Sequence[SkipStrategy] = (),
    trials: int = 1,
) -> None:
    """Refuse a search that could not end well, whatever it is for.

    Args:
        classes: Names of the classes whose settings are searched.
        max_new_tokens: T; 2 or more, for there to be a decode step.
        examples: Ids of the validation examples, each once.
        first: Settings to try first. Their layers must be known before a step.
        trials: Number of settings to try, at least those of `first`.

    Raises:
        UserError: One of them does not fit; the message names the option.
        RunError: Optuna is not installed.
    """
    check_optuna()
    scheduled_classes(classes)
    for setting in first:
        if not isinstance(setting, ScheduledStrategy):
            raise UserError(f"first: {setting!r} has no layers that are known before a step, and replay scores those.")
    if len(first) > trials:
        raise UserError(f"first lists {len(first)} settings and trials={trials}: give as many trials, or more.")
    if max_new_tokens < 2:
        raise UserError(f"model.max_new_tokens={max_new_tokens}: there is no decode step to skip layers in; give more.")
    check_ids(examples, "validation")


def check_tuning(
    classes: Sequence[str],
    *,
    max_loss: float | None,
    speedup: float | None,
    metric: str,
    computed: Collection[str],
    max_new_tokens: int,
    examples: Sequence[str],
    first: Sequence[SkipStrategy] = (),
    trials: int = 1,
) -> None:
    """Refuse a tuning for quality or speed that could not end well.

    Args:
        classes: See `check_search`.
        max_loss: See `Goal`.
        speedup: See `Goal`.
        metric: One of a whole split, such as rougeL or bleu4.
        computed: Names of the metrics that DecodeModule computes.
        max_new_tokens: See `check_search`.
        examples: Likewise.
        first: Likewise.
        trials: Likewise.

    Raises:
        UserError: One of them does not fit; the message names the option.
        RunError: Optuna is not installed.
    """
    Goal(max_loss, speedup)
    check_search(classes, max_new_tokens=max_new_tokens, examples=examples, first=first, trials=trials)
    if metric not in CORPUS_METRICS:
        raise UserError(f"metric={metric}; expected one of {', '.join(CORPUS_METRICS)}.")
    check_computed(metric, CORPUS_METRICS[metric], computed)
