"""Prepare a data set: its official files in, train.jsonl, validation.jsonl and test.jsonl out."""

import json
import os
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from platformdirs import user_cache_path

from hsdlab.data.places import data_root
from hsdlab.data.prepare.download import fetched, sha256_of, taken
from hsdlab.data.prepare.examples import Pair, Split
from hsdlab.data.prepare.official import OFFICIAL_SETS, OTHER_NAMES, OfficialSet
from hsdlab.errors import RunError, UserError
from hsdlab.progress import Steps

NOTE = "prepared.json"
TAGS: dict[Split, str] = {"train": "train", "validation": "val", "test": "test"}
"""How the ids name the splits."""


@dataclass(frozen=True)
class Prepared:
    """What was written.

    Attributes:
        folder: Where.
        examples: How many, by split; a split of which the official files are missing has none.
        missing: The names of official files that a folder given with --from lacks.
        noted: SHA-256 by name, of the files whose hash was not known beforehand.
        unchanged: Whether the same bytes were there already.
    """

    folder: Path
    examples: Mapping[Split, int]
    missing: tuple[str, ...]
    noted: Mapping[str, str]
    unchanged: bool


def prepare(name: str, from_folder: Path | None = None, output: Path | None = None) -> Prepared:
    """Write a data set as JSON Lines, out of its official files.

    Args:
        name: One of `OFFICIAL_SETS`, or another name for one.
        from_folder: Holds the official files; by default they are downloaded into hsdlab's cache.
        output: Where to write; by default the set's folder in $HSDLAB_DATA, or else in ./data.

    Returns:
        What was written.

    Raises:
        UserError: No such set.
        RunError: A file cannot be fetched or is another one, or the folder holds other data.
    """
    official = OFFICIAL_SETS.get(OTHER_NAMES.get(name, name))
    if official is None:
        raise UserError(f"No data set {name!r}: expected one of {', '.join(OFFICIAL_SETS)}")
    folder = data_root() / official.folder if output is None else output
    files = _files(official, from_folder)
    missing = tuple(file.name for file in official.files if file.name not in files)
    if missing and not official.whole:
        raise RunError(f"--from={from_folder} lacks {', '.join(missing)}, which {name} needs: put it there too")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        written, unchanged = _write(official, files, folder)
    except OSError as error:
        raise RunError(f"{folder} cannot be written: {error.strerror}. Give another folder with --output.") from error
    unknown = {file.name for file in official.files if file.sha256 is None}
    hashes = {each: sha256_of(path) for each, path in files.items()}
    if not unchanged:
        _write_note(official, folder, written, hashes)
    return Prepared(folder, written, missing, {each: hashes[each] for each in files if each in unknown}, unchanged)


def _files(official: OfficialSet, from_folder: Path | None) -> dict[str, Path]:
    if from_folder is not None:
        return taken(official.files, from_folder)
    cache = _cache() / "official" / official.folder.removesuffix("_full")
    return {file.name: fetched(file, cache) for file in official.files}


def _cache() -> Path:
    """Return the cache folder, by the rule of `hsdlab.models.cache_folder`, a room that data does not import."""
    given = os.environ.get("HSDLAB_CACHE")
    return Path(given).expanduser().absolute() if given else user_cache_path("hsdlab", appauthor=False)


def _write(official: OfficialSet, files: Mapping[str, Path], folder: Path) -> tuple[dict[Split, int], bool]:
    """Write the splits beside the files that they take the place of; say whether those had the same bytes."""
    counts: dict[Split, int] = {}
    unfinished: dict[Split, Path] = {}
    with ExitStack() as stack, Steps(f"Writing {folder}", 0, "examples") as steps:
        opened: dict[Split, TextIO] = {}
        try:
            for pair in official.read(files):
                if pair.split not in opened:
                    path = folder / f".{pair.split}.jsonl.{os.getpid()}"
                    unfinished[pair.split] = path
                    opened[pair.split] = stack.enter_context(path.open("w", encoding="utf-8", newline="\n"))
                    counts[pair.split] = 0
                number = counts[pair.split]
                opened[pair.split].write(_line(f"{official.folder}-{TAGS[pair.split]}-{number:05}", pair))
                counts[pair.split] = number + 1
                steps.advance()
        except BaseException:
            _remove(unfinished.values())
            raise
    same = {split: _same(path, folder / f"{split}.jsonl") for split, path in unfinished.items()}
    if all(same.values()):
        _remove(unfinished.values())
        return counts, True
    others = [f"{split}.jsonl" for split in unfinished if (folder / f"{split}.jsonl").exists() and not same[split]]
    if others and not (folder / NOTE).exists():
        _remove(unfinished.values())
        raise RunError(f"{folder} holds another {', '.join(others)}: give another folder with --output, or remove it")
    for split, path in unfinished.items():
        os.replace(path, folder / f"{split}.jsonl")
    return counts, False


def _line(example_id: str, pair: Pair) -> str:
    fields = {"id": example_id, "source": pair.source, "references": pair.references}
    return json.dumps(fields, ensure_ascii=False) + "\n"


def _same(path: Path, other: Path) -> bool:
    return other.is_file() and path.stat().st_size == other.stat().st_size and sha256_of(path) == sha256_of(other)


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def _write_note(official: OfficialSet, folder: Path, examples: Mapping[Split, int], hashes: Mapping[str, str]) -> None:
    """Note what the data is, so that results can say which was used."""
    addresses = {file.name: file.address for file in official.files}
    note = {
        "title": official.title,
        "licence": official.licence,
        "note": official.note,
        "examples": dict(examples),
        "files": {name: {"address": addresses[name], "sha256": sha256} for name, sha256 in hashes.items()},
        "written": {f"{split}.jsonl": sha256_of(folder / f"{split}.jsonl") for split in examples},
    }
    unfinished = folder / f".{NOTE}.{os.getpid()}"
    unfinished.write_text(json.dumps(note, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(unfinished, folder / NOTE)
