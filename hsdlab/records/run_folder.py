"""The output folder of a run: made, gone on with after a kill, or refused."""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import yaml
from rich.console import Console

from hsdlab.program import typed
from hsdlab.records.files import replace_file
from hsdlab.records.provenance import RunInfo, Session

WRITTEN = (
    *("config.yaml", "run.json", "metrics.json", "result.json", "predictions*.jsonl", "predictions/*.jsonl"),
    *("comparison.md", "comparison.json", "pareto.png", "depth.png", "bench.json", "bench.md"),
    *("calibration.md", "calibration.json", "calibration.png", "calibrated.yaml"),
    *("tuning.md", "tuning.json", "frontier.png", "scores.jsonl", "strategy.yaml"),
    *("inspect.json", "inspect.md", "inspect.png", "tensorboard/*/events.out.tfevents.*"),
)
"""What a run writes into its output folder, and `--overwrite` removes from it."""

WITHOUT_EFFECT = (
    *("trainer.enable_progress_bar.", "trainer.enable_model_summary.", "trainer.enable_checkpointing."),
    *("trainer.logger.", "trainer.log_every_n_steps.", "trainer.profiler.", "data.init_args.num_workers.", "verbose."),
    *("trainer.devices.", "trainer.num_nodes.", "trainer.strategy."),  # several processes have the batches of one
)
"""Options that change no result: a run goes on with other ones."""

OF_THE_SEARCH = ("max_loss.", "speedup.", "metric.", "classes.", "first.", "trials.", "decodes.")
"""Options of `tune` that change what is scored and decoded, and nothing of what has been: a run goes on with others."""

ABSENT = "nothing"
RUN_FILE = "run.json"
RESULT_FILE = "result.json"
METRICS_FILE = "metrics.json"


class RunFolder:
    """A run is known by its run.json: subcommand, configuration, weights, versions.

    Args:
        path: The folder.
        subcommand: Of `evaluate.py`.
        config: The resolved configuration.
        overwrite: Start anew, whatever is there.

    Raises:
        FileExistsError: The path is a file.
    """

    def __init__(self, path: Path, subcommand: str, config: Mapping[str, Any], overwrite: bool) -> None:
        if path.exists() and not path.is_dir():
            raise FileExistsError(f"--output={path} is a file; expected a folder.")
        self.path = path
        self.subcommand = subcommand
        self.config = config
        file = path / RUN_FILE
        self.before = RunInfo.read(file) if not overwrite and file.is_file() else None
        self.empty = overwrite or not path.exists() or not any(path.iterdir())

    def check(self, can_resume: bool) -> bool:
        """Say whether the run goes on with what the folder holds.

        Args:
            can_resume: Whether the subcommand can.

        Returns:
            True to go on, False to start.

        Raises:
            FileExistsError: The folder holds something else: no run, or one of other settings, which are named.
        """
        if self.empty:
            return False
        if self.before is None or not can_resume:
            raise FileExistsError(
                f"The output folder {self.path} is not empty. Give another one with --output, or --overwrite to "
                "replace the results in it."
            )
        lines = self._differences(self.before)
        if lines:
            raise FileExistsError(
                "\n  ".join([f"The output folder {self.path} holds a run with other settings:", *lines])
                + "\nGive another folder with --output, --overwrite to replace the results in it, or the settings of "
                f"that run to go on with it: --config {self.path / 'config.yaml'} --output {self.path}"
            )
        return True

    def check_unchanged(self, what: Literal["weights", "examples"], run: RunInfo) -> None:
        """Refuse to go on with other weights or examples under the same name.

        Args:
            what: Which fingerprint of run.json to compare.
            run: Provenance of this run.

        Raises:
            FileExistsError: They are not those that the run in the folder began with.
        """
        if self.before is not None and getattr(self.before, what) != getattr(run, what):
            raise FileExistsError(
                f"The {what} are not those that the run in {self.path} began with, under the same name. Give another "
                "folder with --output, or --overwrite to replace the results in it."
            )

    def open(self, run: RunInfo) -> RunInfo:
        """Remove an earlier run's results, unless this one goes on with them; write config.yaml and run.json.

        Args:
            run: Provenance.

        Returns:
            The same; where the run goes on, with `earlier`: with which versions, commit and machine it began.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        if self.before is None:
            for file in (file for pattern in WRITTEN for file in self.path.glob(pattern)):
                file.unlink()
        else:
            run = replace(run, earlier=_sessions(self.before, run))
        write_config(self.path, self.config, typed(self.subcommand))
        run.write(self.path / RUN_FILE)
        return run

    def warn_of_changes(self, run: RunInfo, console: Console) -> None:
        """Say what is another version or machine than the run was last made with."""
        before = _made_with(self.before or run)
        for name, now in _made_with(run).items():
            if before.get(name) != now:
                text = f"Warning: the run was made with {name} {before.get(name)} so far; it is {now} now."
                console.print(text, highlight=False, soft_wrap=True)

    def _differences(self, before: RunInfo) -> list[str]:
        """A line for each setting that changes results and is another one than in the run before."""
        if before.subcommand != self.subcommand:
            return [f"subcommand: {before.subcommand or 'unknown'} then, {self.subcommand} now"]
        old, new = _flat(before.config), _flat(json.loads(json.dumps(self.config, default=str)))
        begun, wanted = old.get("strategies"), new.get("strategies")
        longer = self.subcommand == "compare"  # the order of a calibration is fixed before its losses are seen
        if longer and begun and wanted and wanted[: len(begun)] == begun:  # each has a file of its own
            del old["strategies"], new["strategies"]
        free = WITHOUT_EFFECT + (OF_THE_SEARCH if self.subcommand == "tune" else ())
        return [
            f"{name}: {old.get(name, ABSENT)} then, {new.get(name, ABSENT)} now"
            for name in sorted({*old, *new})
            if old.get(name) != new.get(name) and not f"{name}.".startswith(free)
        ]


def prediction_file(folder: Path, name: str | None = None, number: int | None = None) -> Path:
    """Return the file of predictions that a run writes into its folder.

    Args:
        folder: Of the run.
        name: Of the strategy, where a run decodes under several; None for the file of a run of one.
        number: Its place, from 1 on, where the order is known beforehand.
    """
    if name is None:
        return folder / "predictions.jsonl"
    plain = re.sub(r"[^\w.=-]+", "_", name).strip("_")  # what a file name should not have
    return folder / "predictions" / f"{'' if number is None else f'{number:02}_'}{plain}.jsonl"


def write_config(folder: Path, config: Mapping[str, Any], command: str) -> None:
    """Write config.yaml: with `command`, it runs again as it is."""
    path = folder / "config.yaml"
    write_yaml(path, config, f"{command} --config {path}")


def write_yaml(path: Path, content: Mapping[str, Any], *comments: str) -> None:
    """Write a YAML file, with lines of comment above, whole or not at all."""
    lines = "".join(f"# {comment}\n" for comment in comments)
    replace_file(path, lines + yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True))


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file whole or not at all."""
    replace_file(path, json.dumps(content, indent=2, ensure_ascii=False, default=str) + "\n")


def fingerprint(texts: Iterable[str]) -> str:
    """Return 16 hex digits that tell lists of texts apart."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode() + b"\0")
    return digest.hexdigest()[:16]


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings by their names on the command line."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def _sessions(before: RunInfo, run: RunInfo) -> tuple[Session, ...]:
    """Return with what a run was made so far, where that is something else than now; oldest first."""
    same = (before.versions, before.git, before.machine) == (run.versions, run.git, run.machine)
    return before.earlier if same else (*before.earlier, before.session)


def _made_with(run: RunInfo) -> dict[str, str | None]:
    """Name what may change results or times a little."""
    return {
        **run.versions,
        "commit": str(run.git and run.git.commit)[:10],
        "machine": " and ".join([run.machine.cpu, *run.machine.gpus]),
    }
