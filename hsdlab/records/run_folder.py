"""The output folder of a run: new, resumed, overwritten or refused; and held by one process.

Long, because these are the states of one folder; its list of files, its lock and its identity have files of their own.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from hsdlab.errors import RunError
from hsdlab.program import typed
from hsdlab.records import identity
from hsdlab.records.files import faults_of_writing, listening, replace_file
from hsdlab.records.identity import IdentityName
from hsdlab.records.lock import FolderLock
from hsdlab.records.manifest import MANIFEST_FILE, Manifest, unfinished_files, walk
from hsdlab.records.provenance import RunInfo

RUN_FILE = "run.json"
RESULT_FILE = "result.json"
METRICS_FILE = "metrics.json"
CONFIG_FILE = "config.yaml"

AT_THE_START = (RUN_FILE, CONFIG_FILE)
"""What a run writes before it has any result."""
SHOWN = 3
"""Of files that are not the run's, so many are named."""

BEFORE_LISTS = (
    *("config.yaml", "run.json", "metrics.json", "result.json", "predictions.jsonl", "predictions.rank*.jsonl"),
    *("predictions/*.jsonl", "comparison.md", "comparison.json", "pareto.png", "depth.png", "bench.json", "bench.md"),
    *("calibration.md", "calibration.json", "calibration.png", "calibrated.yaml"),
    *("tuning.md", "tuning.json", "frontier.png", "scores.jsonl", "strategy.yaml"),
    *("inspect.json", "inspect.md", "inspect.png", "tensorboard/*/events.out.tfevents.*"),
    *("exit_classifier.safetensors", "exit_classifier.json", "exit_classifier.png"),
    *("checkpoints/best.ckpt", "checkpoints/last.ckpt", "lightning_logs/version_*/events.out.tfevents.*"),
    *("lightning_logs/version_*/hparams.yaml", "lightning_logs/version_*/metrics.csv"),
    *("model/*config.json", "model/*model*.safetensors*", "model/tokenizer*", "model/*.jinja", "model/README.md"),
    *("model/special_tokens_map.json", "model/vocab.json", "model/merges.txt"),
)
"""What runs wrote before there was a list of files in the folder."""

READ_BACK = (
    "predictions.jsonl",
    "predictions.rank*.jsonl",
    "predictions/*.jsonl",
    "scores.jsonl",
    "checkpoints/*.ckpt",
)
"""What a run reads back. Files of others must not lie under these names."""


class RunFolder:
    """An output folder, held by one process at a time. A run in it is recognised by its run.json and its list of files.

    `check` accepts or refuses the folder before anything is loaded, and writes nothing. `open` begins to write, once
    all else has been checked. `release` ends it.

    Args:
        path: The folder.
        subcommand: Of `evaluate.py` or `train.py`.
        config: The resolved configuration.
        overwrite: Start anew. What runs wrote into the folder is removed, and nothing else.
        command: The script, "evaluate.py" or "train.py".
        is_first: Whether this is the first process of the run, which alone holds the folder and writes messages.

    Attributes:
        before: Provenance of the run in the folder, where this run resumes it; else None.

    Raises:
        FileExistsError: The path is a file.
        FileNotFoundError: It is, or lies behind, a symbolic link to nothing.
        RunError: Another process holds the folder.
    """

    def __init__(
        self,
        path: Path,
        subcommand: str,
        config: Mapping[str, Any],
        overwrite: bool,
        command: str = "evaluate.py",
        is_first: bool = True,
    ) -> None:
        if path.exists() and not path.is_dir():
            raise FileExistsError(f"--output={path} is a file; expected a folder.")
        for each in (path, *path.parents):
            if each.is_symlink() and not each.exists():
                raise FileNotFoundError(
                    f"--output={path}: {each} is a symbolic link to {os.readlink(each)}, where there is nothing. Make "
                    "that folder, or give another one."
                )
        self.path = path
        self.subcommand = subcommand
        self.config = config
        self.overwrite = overwrite
        self.command = command
        self.is_first = is_first
        self.before: RunInfo | None = None
        self._lock = FolderLock(path)
        if is_first:
            self._lock.check()
        self._manifest = Manifest(path)
        self._held = ExitStack()
        self._made: list[Path] = []
        self._seen = self._content()

    def check(self, can_resume: bool, goes_on: bool = False, otherwise: str = "") -> bool:
        """Decide whether the run resumes what the folder holds.

        Args:
            can_resume: Whether a run of the same settings may be resumed.
            goes_on: Whether the user asks to resume, so that other settings are refused even where there is no result.
            otherwise: What else can be done with a folder that is not empty, appended to the message.

        Returns:
            True to resume, False to start.

        Raises:
            FileExistsError: The folder holds something else: no run, or one of other settings, which the message names.
            RunError: Its run.json is damaged.
        """
        if not self._is_of_runs():
            self._refuse_others(list(islice(walk(self.path), SHOWN + 1)))  # all of a whole disk would take minutes
        ours, foreign = self._files()
        if self.overwrite:
            self._check_inputs(ours)
        if not ours and not self._manifest.exists:
            self._refuse_others(foreign)
        has_results = any(name not in AT_THE_START for name in ours)
        if self.overwrite or not (has_results or (goes_on and ours)):  # of a start that was cut short nothing is kept
            self._check_read_back(foreign)
            return False
        before = RunInfo.read(self.path / RUN_FILE) if RUN_FILE in ours else None
        if before is None or not can_resume:
            raise FileExistsError(
                f"The output folder {self.path} is not empty. Give another one with --output, or --overwrite to "
                f"replace the results in it{otherwise}."
            )
        lines = identity.differences(before, self.subcommand, self.config)
        if lines:
            raise FileExistsError(
                "\n  ".join([f"The output folder {self.path} holds a run with other settings:", *lines])
                + "\nEither give another folder with --output, or add one of these to the command:"
                "\n  to replace the results in the folder: --overwrite"
                f"\n  to resume that run with its settings: --config {self.path / CONFIG_FILE} --output {self.path}"
            )
        self.before = before
        return True

    def check_unchanged(self, run: RunInfo, *names: IdentityName) -> None:
        """Refuse to resume with a model or data that have changed under the same name.

        Args:
            run: Provenance of this run.
            *names: Fields of run.json to compare. One that the run before did not note is not compared.

        Raises:
            FileExistsError: One of them differs; the message says which.
        """
        for change in (identity.change_of(name, self.before, run) for name in names if self.before is not None):
            if change is not None:
                raise FileExistsError(
                    f"{change} that the run in {self.path} began with, under the same name. Give another folder with "
                    "--output, or --overwrite to replace the results in it."
                )

    def warn_of_changes(self, run: RunInfo, console: Console) -> None:
        """Print warnings where versions or machine differ from those of the run that is resumed.

        Args:
            run: Provenance of this run.
            console: Where to print, one line per warning (:func:`hsdlab.records.identity.warnings`).
        """
        if self.before is not None:
            for text in identity.warnings(self.before, run):
                console.print(text, highlight=False, soft_wrap=True)

    def is_finished(self) -> bool:
        """Say whether a run of `train.py` in the folder has come to its end.

        Returns:
            What the list of files says; in a folder without a list, whether the trained model or classifier is there.
        """
        if self._manifest.exists:
            return self._manifest.finished
        return (self.path / "model").is_dir() or (self.path / "exit_classifier.json").is_file()

    def open(self, run: RunInfo, folders: Sequence[str] = (), anew: bool = False) -> RunInfo:
        """Hold the folder; remove an earlier run's files, unless this run resumes it; write run.json and config.yaml.

        Args:
            run: Provenance of this run.
            folders: Folders, relative to this one, in which other libraries make files of any names.
            anew: Remove an earlier run's files also when resuming, because there is nothing to resume from.

        Returns:
            The provenance; when resuming, with the earlier sessions.

        Raises:
            RunError: Another process holds the folder, or has written into it since `check`; or it cannot be
                written to.
        """
        if not self.is_first:
            self._held.enter_context(listening(lambda path: self._manifest.note(path, is_first=False)))
            return run
        missing = [each for each in (self.path, *self.path.parents) if not each.exists()]
        self._lock.take()
        self._held.callback(self._lock.release)
        self._made = missing
        if self._content() != self._seen:
            raise RunError(
                f"Another command has written into the output folder {self.path} since this one began. Run the "
                "command again."
            )
        self._tidy()
        if anew or self.before is None:
            self._manifest.remove()
        self._held.enter_context(listening(self._manifest.note))
        self._manifest.open(folders)
        if self.before is not None:
            run = replace(run, earlier=identity.sessions(self.before, run))
        run.write(self.path / RUN_FILE)
        write_config(self.path, self.config, typed(self.subcommand, self.command))
        return run

    def finish(self) -> None:
        """Note that the run has come to its end."""
        if self.is_first:
            self._manifest.finish()

    def abandon(self, has_results: bool = False) -> None:
        """After a start that failed: remove what it made, so that the next one finds the folder as it was.

        Args:
            has_results: Whether the run already has results; then nothing is removed.
        """
        if not self._lock.is_held or self.before is not None or has_results:
            return
        self._manifest.close()
        self._manifest.remove()
        self._manifest.forget()
        self._held.close()
        for folder in self._made:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()

    def release(self) -> None:
        """Release the folder; list the files that other libraries made."""
        if self._lock.is_held:
            self._manifest.close()
        self._held.close()

    def has_results(self) -> bool:
        """Say whether runs wrote more into the folder than a run writes at its start.

        Returns:
            False where there is at most run.json and config.yaml.
        """
        return self._is_of_runs() and any(name not in AT_THE_START for name in self._files()[0])

    def _is_of_runs(self) -> bool:
        """Tell whether a run may have written into the folder."""
        return self._manifest.exists or (self.path / RUN_FILE).is_file()

    def _files(self) -> tuple[list[str], list[str]]:
        """Return the names of what runs wrote into the folder, and of what they did not."""
        return _files(self._manifest, self.overwrite)

    def _refuse_others(self, names: Sequence[str]) -> None:
        """Refuse a folder that holds files of others alone."""
        if names:
            raise FileExistsError(
                f"The output folder {self.path} is not empty, and no run of hsdlab wrote what is in it "
                f"({', '.join(names[:SHOWN])}{' and more' if len(names) > SHOWN else ''}). Give another folder with "
                "--output, or empty it yourself: --overwrite removes only what a run wrote."
            )

    def _check_inputs(self, ours: Sequence[str]) -> None:
        """Refuse to remove what this run reads: a model, adapter or data file in its own output folder."""
        folder = self.path.resolve()
        for name, value in identity.texts(self.config):
            path = Path(value).expanduser().resolve() if len(value) < 1000 and "\0" not in value else folder
            inside = path.relative_to(folder).as_posix() if path != folder and path.is_relative_to(folder) else None
            if inside is not None and any(f"{each}/".startswith(f"{inside}/") for each in ours):
                raise FileExistsError(
                    f"{name}={value} lies in the output folder {self.path}, and --overwrite would remove it before it "
                    "is read. Give another folder with --output."
                )

    def _check_read_back(self, foreign: Sequence[str]) -> None:
        """Refuse files of others that the run would read as its own."""
        patterns = (*READ_BACK, "model/*") if self.command == "train.py" else READ_BACK  # the folder is replaced whole
        if strange := sorted(_found(self.path, patterns) - set(self._files()[0])):
            raise FileExistsError(
                f"The output folder {self.path} holds {_listed(strange)}, which no run of hsdlab wrote and this one "
                "would take for its own. Move it away, or give another folder with --output."
            )

    def _content(self) -> tuple[bytes, ...]:
        """Return what shows whether another command has written into the folder."""
        files = (self.path / name for name in (RUN_FILE, MANIFEST_FILE))
        return tuple(file.read_bytes() if file.is_file() else b"" for file in files)

    def _tidy(self) -> None:
        """Remove what a killed process was writing; list what a run wrote before there were lists."""
        for path in list(unfinished_files(self.path)):
            with faults_of_writing(path):
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
        self._manifest.repair()
        if not self._manifest.exists:
            self._manifest.adopt(self._files()[0])


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a folder during the block, and list what is written, unless the folder is the user's own.

    Within a command that holds the folder, this does nothing.

    Args:
        folder: Made if it is missing. It is the user's own if it holds files, and none that a run wrote.

    Yields:
        Nothing.

    Raises:
        RunError: Another process holds it.
    """
    lock = FolderLock(folder)
    if lock.is_of_this_process():
        yield
        return
    lock.take()
    try:
        manifest = Manifest(folder)
        ours, foreign = _files(manifest, overwrite=True)
        with ExitStack() as noting:
            if ours or not foreign:
                if not manifest.exists:
                    manifest.adopt(ours)
                noting.enter_context(listening(manifest.note))
            yield
    finally:
        lock.release()


def prediction_file(folder: Path, name: str | None = None, number: int | None = None) -> Path:
    """Name the file of predictions that a run writes into its folder.

    Args:
        folder: Of the run.
        name: Of the strategy, where a run decodes with several; None for the file of a run with one.
        number: Place of the strategy, from 1; None where the order is not known beforehand.

    Returns:
        "predictions.jsonl", or a path such as "predictions/02_HSD_max_exit=15.jsonl", in the folder.
    """
    if name is None:
        return folder / "predictions.jsonl"
    plain = re.sub(r"[^\w.=-]+", "_", name).strip("_")  # what a file name should not have
    return folder / "predictions" / f"{'' if number is None else f'{number:02}_'}{plain}.jsonl"


def write_config(folder: Path, config: Mapping[str, Any], command: str) -> None:
    """Write config.yaml, from which a run can be repeated.

    Args:
        folder: Of the run.
        config: The resolved configuration.
        command: The command as it is typed, "hsdlab test"; a comment in the file shows it with --config.
    """
    path = folder / "config.yaml"
    write_yaml(path, config, f"{command} --config {path}")


def write_yaml(path: Path, content: Mapping[str, Any], *comments: str) -> None:
    """Write a YAML file whole or not at all.

    Args:
        path: An existing file is replaced.
        content: Its keys keep their order.
        *comments: Lines above it, written with "# ".
    """
    lines = "".join(f"# {comment}\n" for comment in comments)
    replace_file(path, lines + yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True))


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file whole or not at all.

    Args:
        path: An existing file is replaced.
        content: A value that JSON cannot hold is written as text.
    """
    replace_file(path, json.dumps(content, indent=2, ensure_ascii=False, default=str) + "\n")


def fingerprint(texts: Iterable[str]) -> str:
    """Hash a list of texts.

    Args:
        texts: Their order counts.

    Returns:
        16 hex digits of SHA-256; equal for equal lists.
    """
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode() + b"\0")
    return digest.hexdigest()[:16]


def _files(manifest: Manifest, overwrite: bool) -> tuple[list[str], list[str]]:
    """Return the names of the files that runs wrote into a folder, and of all others."""
    ours, foreign = manifest.files()
    if not manifest.exists and RUN_FILE in foreign and _is_run(manifest.folder / RUN_FILE, overwrite):
        known = _found(manifest.folder, BEFORE_LISTS)
        ours, foreign = [name for name in foreign if name in known], [name for name in foreign if name not in known]
    return ours, foreign


def _found(folder: Path, patterns: Iterable[str]) -> set[str]:
    """Return the names of the files in a folder that match at least one pattern."""
    return {file.relative_to(folder).as_posix() for pattern in patterns for file in folder.glob(pattern)}


def _is_run(file: Path, overwrite: bool) -> bool:
    """Return whether a run.json is one of hsdlab. A damaged one is an error where the run may be resumed."""
    try:
        RunInfo.read(file)
    except RunError:
        if not overwrite:
            raise
        return False
    return True


def _listed(names: Sequence[str]) -> str:
    """Return the first names, and how many more there are."""
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")
