"""Options of the Trainer that cannot do what they say here: refused in one place, before the model is loaded.

All others do what Lightning's documentation says. A table in tests/cli/test_trainer_flags.py tries each.
"""

import logging
import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher

from hsdlab.errors import UserError

TRAINS = ("fit", "fit_exit_classifier", "fit_exit_router")
LIMITS = {
    **dict.fromkeys(("validate", "calibrate", "tune"), "limit_val_batches"),
    **dict.fromkeys(("test", "compare"), "limit_test_batches"),
    "predict": "limit_predict_batches",
}
"""The limit that acts on what a subcommand decodes."""
ON_ALL = ("calibrate", "tune")
"""The subcommands whose result is a statement on all examples."""
TRAINING_ONLY = (
    "max_epochs",
    "min_epochs",
    "max_steps",
    "min_steps",
    "max_time",
    "limit_train_batches",
    "overfit_batches",
    "val_check_interval",
    "check_val_every_n_epoch",
    "num_sanity_val_steps",
    "accumulate_grad_batches",
    "gradient_clip_val",
    "gradient_clip_algorithm",
    "reload_dataloaders_every_n_epochs",
)
"""Options that act on a training alone."""
STRATEGIES = ("auto", "ddp", "ddp_find_unused_parameters_true", "ddp_find_unused_parameters_false")
_STRATEGIES_EXPECTED = (
    f"expected one of {', '.join(STRATEGIES)}. What shards the model or starts processes in another way is not offered."
)
_CPU_PROCESSES = 16
"""More of them than this and than there are cores are taken for a mistake."""

_NEVER_WRONG = ("default_root_dir", "callbacks", "enable_progress_bar", "enable_model_summary")

Flags = Mapping[str, Any]


def check_flags(flags: Flags, defaults: Flags, subcommand: str, trains: bool) -> None:
    """Refuse options of the Trainer that would do nothing, or other than they say.

    Args:
        flags: Of the Trainer, as they were given.
        defaults: What each is when it is not given.
        subcommand: Which command is to run.
        trains: Whether it is one of `train.py`, whose configs `validate` takes as they are.

    Raises:
        UserError: Naming the option, and what to give in its place.
    """
    for name, refuses, why in _everywhere() + (_training(subcommand) if subcommand in TRAINS else _decoding()):
        if refuses(flags[name]):
            raise UserError(f"--trainer.{name}={_shown(flags[name])}: {why}")
    for name in ("limit_train_batches", "limit_val_batches", "limit_test_batches", "limit_predict_batches"):
        _check_limit(name, flags[name])
    if subcommand in TRAINS:
        return
    acts = LIMITS.get(subcommand)
    others = [name for name in ("limit_val_batches", "limit_test_batches", "limit_predict_batches") if name != acts]
    for name in () if trains else (*TRAINING_ONLY, *others):
        if flags[name] != defaults[name]:
            raise UserError(f"--trainer.{name}={_shown(flags[name])} has no effect on {subcommand}: leave it out.")
    if acts is None:
        return
    if flags[acts] == 0:
        raise UserError(f"--trainer.{acts}=0: {subcommand} would read nothing. Leave it out, or give --data.limit.")
    if subcommand in ON_ALL and flags[acts] != defaults[acts]:
        raise UserError(
            f"--trainer.{acts}={_shown(flags[acts])}: {subcommand} judges by all examples of the split; to take fewer "
            "give --data.limit."
        )


def check_enough(flags: Flags, subcommand: str, batches: int) -> None:
    """Refuse a share of the batches that is less than one.

    Args:
        flags: Of the Trainer.
        subcommand: Which command is to run.
        batches: There are of what it reads.

    Raises:
        UserError: Naming the option.
    """
    name = LIMITS.get(subcommand)
    share = flags[name] if name else None
    if isinstance(share, float) and int(share * batches) < 1:
        raise UserError(
            f"--trainer.{name}={share} of {batches} batches is less than one: give a number of batches, or "
            "--data.limit."
        )


def try_trainer(make: type[Trainer], flags: Flags, defaults: Flags) -> None:
    """Make a Trainer and drop it, so that what Lightning refuses is known before the model is loaded.

    Args:
        make: The class.
        flags: Its options, callbacks and loggers as objects.
        defaults: What each is when it is not given.

    Raises:
        UserError: Lightning refuses the options, or they would start processes that never find each other.
    """
    try:
        with _quietly():
            trainer = make(**dict(flags))
    except UserError:
        raise
    except Exception as error:  # Lightning and its plugins raise what they like
        reason = str(error).strip().partition("\n")[0].rstrip(".!") or type(error).__name__
        given = {name: value for name, value in flags.items() if name in defaults and value != defaults[name]}
        meant = [name for name, value in given.items() if _is_about(reason, name, value)] or list(given)
        shown = ", ".join(f"--trainer.{name}={_shown(given[name])}" for name in meant if name not in _NEVER_WRONG)
        raise UserError(f"{shown or '--trainer'}: the Trainer refuses it: {reason}.") from error
    plugins = flags["plugins"] if isinstance(flags["plugins"], list) else [flags["plugins"]]
    if any(isinstance(plugin, CheckpointIO) for plugin in plugins):
        raise UserError("--trainer.plugins: hsdlab writes checkpoints itself, whole or not at all; leave that one out.")
    if not isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy) or isinstance(
        trainer.strategy.launcher, _MultiProcessingLauncher
    ):
        raise UserError(f"--trainer.strategy={type(trainer.strategy).__name__}: {_STRATEGIES_EXPECTED}")
    cores = os.cpu_count() or 1
    if trainer.strategy.root_device.type == "cpu" and trainer.num_devices > max(_CPU_PROCESSES, cores):
        raise UserError(f"--trainer.devices={trainer.num_devices}: this machine has {cores} CPU cores; give fewer.")
    environment = getattr(trainer.strategy, "cluster_environment", None)
    if trainer.num_nodes > 1 and isinstance(environment, LightningEnvironment) and "MASTER_ADDR" not in os.environ:
        raise UserError(
            f"--trainer.num_nodes={trainer.num_nodes}: this process would wait for the other machines without an end. "
            "Start it by SLURM or torchrun on each, or set MASTER_ADDR, MASTER_PORT and NODE_RANK."
        )


Rule = tuple[str, Callable[[Any], bool], str]


def _everywhere() -> list[Rule]:
    return [
        ("barebones", bool, "it leaves all figures and files out, which are what the command is for; leave it out."),
        ("model_registry", bool, "hsdlab uploads nothing; leave it out."),
        ("num_nodes", _below(1), "expected 1 or more."),
        ("devices", lambda value: value in (0, "0", []), "expected 1 or more, a list of devices, or auto."),
        ("log_every_n_steps", _below(0), "expected 1 or more, or 0 to log no step."),
        ("sync_batchnorm", bool, "the models have no batch normalisation; leave it out."),
        (
            "strategy",
            lambda value: isinstance(value, str) and value not in STRATEGIES,
            _STRATEGIES_EXPECTED,
        ),
    ]


def _training(subcommand: str) -> list[Rule]:
    nothing = "nothing would be trained, and an untrained model exported; expected 1 or more"
    times = (
        "a validation by the clock is another one in each run, so that none could be resumed as if it had not stopped"
    )
    rules: list[Rule] = [
        ("max_steps", lambda value: value == 0 or value < -1, f"{nothing}, or -1 for as many as --trainer.max_epochs."),
        ("max_epochs", lambda value: value is not None and (value == 0 or value < -1), f"{nothing}."),
        ("limit_train_batches", lambda value: value == 0, f"{nothing}, or a share."),
        (
            "overfit_batches",
            bool,
            "hsdlab's training batches have an order of their own, in which a resumed run continues. To see whether a "
            "few examples can be learnt, give --data.limit=8 and more --trainer.max_epochs.",
        ),
        (
            "enable_checkpointing",
            lambda value: value is False,
            "without checkpoints the best weights are not known, and a killed run cannot be resumed; leave it out.",
        ),
        (
            "val_check_interval",
            lambda value: value is not None and not isinstance(value, int | float),
            f"{times}. Give a number of batches, or a share of an epoch.",
        ),
        (
            "val_check_interval",
            lambda value: isinstance(value, int | float) and not _is_interval(value),
            "expected a number of batches, or a share of an epoch, more than 0 and 1.0 at most.",
        ),
        ("check_val_every_n_epoch", _below(1), "expected 1 or more, or null to count batches over all epochs."),
        ("accumulate_grad_batches", _below(1), "expected 1 or more."),
        ("num_sanity_val_steps", _below(-1), "expected 0 or more, or -1 for the whole validation split."),
        ("reload_dataloaders_every_n_epochs", _below(0), "expected 0 (never) or more."),
        (
            "gradient_clip_val",
            lambda value: value is not None and not 0 <= value < math.inf,
            "expected 0 or more, and finite.",
        ),
        (
            "precision",
            lambda value: str(value) == "16-true",
            "AdamW's numbers are too small for pure float16; give 16-mixed, bf16-mixed or 32-true.",
        ),
    ]
    if subcommand in ("fit_exit_classifier", "fit_exit_router"):
        rules.append(
            (
                "limit_val_batches",
                lambda value: value == 0,
                "the quality of what is trained is measured on them; leave it out.",
            )
        )
    return rules


def _decoding() -> list[Rule]:
    return [("fast_dev_run", bool, "it would give the figures of a batch for those of all; give --data.limit.")]


def _check_limit(name: str, value: Any) -> None:
    if value is not None and not (value >= 0 if isinstance(value, int) else 0 <= value <= 1):
        raise UserError(f"--trainer.{name}={value}: expected a number of batches, or a share of them from 0.0 to 1.0.")


def _is_about(reason: str, name: str, value: Any) -> bool:
    """Tell whether Lightning's sentence names an option or its value."""
    return name in reason or (isinstance(value, str) and value.replace("-", "_") in reason.replace("-", "_"))


def _is_interval(value: float) -> bool:
    """Tell whether a number is one of batches, or a share of an epoch."""
    return value >= 1 if isinstance(value, int) else 0 < value <= 1


def _below(least: int) -> Callable[[Any], bool]:
    return lambda value: value is not None and value < least


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(getattr(value, "class_path", value))


@contextmanager
def _quietly() -> Iterator[None]:
    """Within this, Lightning says nothing of the devices: it will when the Trainer is made to be kept."""
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
