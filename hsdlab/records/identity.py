"""The identity of a run: all that determines its result, compared before the run is resumed."""

import json
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from hsdlab.records.provenance import RunInfo, Session

WITHOUT_EFFECT = (
    *("trainer.enable_progress_bar.", "trainer.enable_model_summary.", "trainer.enable_checkpointing."),
    *("trainer.logger.", "trainer.log_every_n_steps.", "trainer.profiler.", "data.init_args.num_workers.", "verbose."),
)
"""Options that change no result: a run is resumed with other values of them."""

OF_THE_PROCESSES = ("trainer.devices.", "trainer.num_nodes.", "trainer.strategy.")
"""Options that set the number of processes. They change no text: the processes share the batches of a single one."""

OF_THE_SEARCH = (
    *("max_loss.", "speedup.", "metric.", "classes.", "first.", "trials.", "decodes."),
    *("draft_lengths.", "draft_vocabularies."),
)
"""Options of `tune` that change what is scored and decoded next, and not what has been. Other values can be resumed."""

FREE: dict[str, tuple[str, ...]] = {
    "fit": (*WITHOUT_EFFECT, "checkpoint_every.", "ckpt_path."),
    "fit_exit_classifier": (*WITHOUT_EFFECT, "checkpoint_every.", "ckpt_path."),
    "fit_exit_router": (*WITHOUT_EFFECT, "checkpoint_every.", "ckpt_path."),
    "tune": (*WITHOUT_EFFECT, *OF_THE_PROCESSES, *OF_THE_SEARCH),
}
"""Subcommand to the options that may differ when it is resumed; others have WITHOUT_EFFECT and OF_THE_PROCESSES."""

IdentityName = Literal["examples", "weights", "weights_hash", "model_config", "tokenizer", "generation", "own_code"]
IDENTITY: dict[IdentityName, str] = {
    "examples": "examples",
    "weights": "weights",
    "weights_hash": "weights",
    "model_config": "settings in the model's config",
    "tokenizer": "tokenizer, its chat template or its special tokens",
    "generation": "options of decoding",
    "own_code": "classes of your own or the files that options name",
}
"""The parts of a run's identity that run.json notes besides the configuration, and their names in messages."""

ABSENT = "nothing"


def differences(before: RunInfo, subcommand: str, config: Mapping[str, Any]) -> list[str]:
    """Compare the configuration of a run with that of the run to be resumed.

    Args:
        before: The run in the output folder.
        subcommand: Of the present run, such as "compare".
        config: The resolved configuration of the present run.

    Returns:
        One line per setting that changes results and differs, "name: value then, value now". It is empty where the run
        can be resumed. A `compare` may list more strategies after those of the run before.
    """
    if before.subcommand != subcommand:
        return [f"subcommand: {before.subcommand or 'unknown'} then, {subcommand} now"]
    old, new = _flat(before.config), _flat(json.loads(json.dumps(config, default=str)))
    begun, wanted = old.get("strategies"), new.get("strategies")
    longer = subcommand == "compare"  # but not `calibrate`: its order has to be fixed before its losses are seen
    if longer and begun and wanted and wanted[: len(begun)] == begun:  # each strategy has a file of its own
        del old["strategies"], new["strategies"]
    return list(_changes(old, new, FREE.get(subcommand, (*WITHOUT_EFFECT, *OF_THE_PROCESSES))))


def change_of(name: IdentityName, before: RunInfo, run: RunInfo) -> str | None:
    """Say how one part of the identity has changed.

    Args:
        name: The field of run.json to compare.
        before: The run in the output folder.
        run: The present run.

    Returns:
        The beginning of a sentence, "The weights are not those", for the caller to end. None where the part has not
        changed, or where the run before did not note it.
    """
    old, new = getattr(before, name), getattr(run, name)
    if old is None or old == new:
        return None
    if name == "own_code":  # a comparison is resumed with more strategies
        changed = sorted(each for each in old.keys() & (new or {}).keys() if old[each] != new[each])
        return f"The {IDENTITY[name]} ({', '.join(changed)}) are not those" if changed else None
    if name != "generation":
        return f"The {IDENTITY[name]} are not those"
    # entries of the model's generation config that the commands do not take change no text
    lines = list(_changes(_flat(old.get("options", {})), _flat((new or {}).get("options", {}))))
    return f"The {IDENTITY[name]} ({'; '.join(lines)}) are not those" if lines else None


def sessions(before: RunInfo, run: RunInfo) -> tuple[Session, ...]:
    """List the sessions in which a run was made, before the present one.

    Args:
        before: The run in the output folder.
        run: The present run, which resumes it.

    Returns:
        Oldest first. The last session of `before` is left out where versions, commit and machine are the same as now.
    """
    same = (before.versions, before.git, before.machine) == (run.versions, run.git, run.machine)
    return before.earlier if same else (*before.earlier, before.session)


def warnings(before: RunInfo, run: RunInfo) -> Iterator[str]:
    """Compare versions, commit and machine with those of the run to be resumed.

    Args:
        before: The run in the output folder.
        run: The present run, which resumes it.

    Yields:
        One sentence per difference, and one that names the parts of the identity that `before` did not note.
    """
    old = _made_with(before)
    for name, now in _made_with(run).items():
        if old.get(name) != now:
            yield f"Warning: the run was made with {name} {old.get(name)} so far; it is {now} now."
    noted = {IDENTITY[name] for name in IDENTITY if getattr(before, name) is not None}
    unknown = [part for part in dict.fromkeys(IDENTITY.values()) if part not in noted]
    if unknown:
        yield (
            f"Warning: the run was begun by a version of hsdlab that did not note all of its {', its '.join(unknown)}: "
            "whether they are the same now is not known."
        )


def _changes(old: Mapping[str, Any], new: Mapping[str, Any], free: tuple[str, ...] = ()) -> Iterator[str]:
    for name in sorted({*old, *new}):
        if old.get(name) != new.get(name) and not f"{name}.".startswith(free):
            then, now = (_readable(each.get(name, ABSENT)) for each in (old, new))
            yield f"{name}: {then} then, {now} now"


def _readable(value: Any) -> str:
    """Write a setting as a user would: objects with class and arguments as "HSD(max_exit=8)", without empty ones."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_readable, value))}]"
    if not isinstance(value, Mapping):
        return str(value)
    if "class_path" not in value:
        return ", ".join(f"{name}={_readable(each)}" for name, each in value.items())
    arguments = {name: each for name, each in (value.get("init_args") or {}).items() if each is not None}
    return f"{value['class_path'].rpartition('.')[2]}({_readable(arguments)})"


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings under their names on the command line."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = _given(value)
    return flat


def _given(value: Any) -> Any:
    """Leave out what is None in the mappings of a list: an argument that an older version did not have yet is None."""
    if isinstance(value, Mapping):
        return {name: _given(each) for name, each in value.items() if each is not None}
    return [_given(each) for each in value] if isinstance(value, list) else value


def texts(config: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Find the options of a configuration whose value is a string, also inside lists.

    Args:
        config: A configuration or any part of one.
        name: The option's name on the command line, without "--", where `config` is a part.

    Yields:
        The option ("--data.init_args.path") and its text.
    """
    if isinstance(config, str):
        yield f"--{name}", config
    elif isinstance(config, Mapping):
        for key, value in config.items():
            yield from texts(value, f"{name}.{key}" if name else str(key))
    elif isinstance(config, list | tuple):
        for value in config:
            yield from texts(value, name)


def _made_with(run: RunInfo) -> dict[str, str | None]:
    """Collect the versions, commit and machine, which may change results or times a little."""
    return {
        **run.versions,
        "commit": str(run.git and run.git.commit)[:10],
        "machine": " and ".join([run.machine.cpu, *run.machine.gpus]),
    }
