"""What the official files of each data set hold: one reader a format.

A reader takes the paths of a set's files by their names and yields pairs. A file that is not among them belongs to a
split that is not wanted. Large archives are read from their beginning to their end, never unpacked as a whole.
"""

import csv
import hashlib
import json
import re
import tarfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from hsdlab.data.hub import split_of
from hsdlab.data.prepare.examples import (
    Groups,
    Pair,
    Split,
    as_pairs,
    drawn,
    each_once,
    grouped,
    held_back,
)
from hsdlab.errors import RunError

Files = Mapping[str, Path]
Reader = Callable[[Files], Iterator[Pair]]

E2E_FILES: dict[str, Split] = {
    "trainset.csv": "train",
    "devset.csv": "validation",
    "testset_w_refs.csv": "test",
}
E2E_VALIDATION = 347
COMMON_GEN_TRAIN, COMMON_GEN_VALIDATION = 10_000, 789
COMMON_GEN_FILES: dict[Split, str] = {"train": "train", "validation": "valid", "test": "test"}


def e2e_full(files: Files) -> Iterator[Pair]:
    """Read the whole E2E sets: columns mr and ref, a row a reference.

    Args:
        files: Name of each official file to its path. A split whose file is missing is left out.

    Yields:
        The pairs, split by split.
    """
    for name, split in E2E_FILES.items():
        if name in files:
            yield from as_pairs(split, _e2e_groups(files[name]))


def e2e(files: Files) -> Iterator[Pair]:
    """Read E2E's whole train and test sets, and 347 sources of the development set.

    Args:
        files: Name of each official file to its path. A split whose file is missing is left out.

    Yields:
        The pairs, split by split.
    """
    for name, split in E2E_FILES.items():
        if name in files:
            groups = _e2e_groups(files[name])
            yield from as_pairs(split, held_back(groups, E2E_VALIDATION) if split == "validation" else groups)


def _e2e_groups(path: Path) -> Groups:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return grouped((row["mr"], row["ref"]) for row in csv.DictReader(file))


def common_gen_full(files: Files) -> Iterator[Pair]:
    """Read the whole CommonGen sets: a file of concept sets and a file of sentences, line by line.

    Args:
        files: Name of each official file to its path. A split whose file is missing is left out.

    Yields:
        The pairs, split by split.
    """
    for split in COMMON_GEN_FILES:
        if groups := _common_gen_groups(files, split):
            yield from as_pairs(split, groups)


def common_gen(files: Files) -> Iterator[Pair]:
    """Read CommonGen's whole test set, and 10,000 training and 789 validation sets that stand in one split only.

    Args:
        files: Name of each official file to its path. A split whose file is missing is left out.

    Yields:
        The pairs, split by split.
    """
    test = _common_gen_groups(files, "test")
    taken = {_concepts(source) for source in test}
    validation = each_once(_common_gen_groups(files, "validation"), _concepts, taken)
    taken |= {_concepts(source) for source in validation}
    train = each_once(_common_gen_groups(files, "train"), _concepts, taken)
    yield from as_pairs("train", drawn(train, COMMON_GEN_TRAIN))
    yield from as_pairs("validation", held_back(validation, COMMON_GEN_VALIDATION))
    yield from as_pairs("test", test)


def _concepts(source: str) -> frozenset[str]:
    return frozenset(source.split())


def _common_gen_groups(files: Files, split: Split) -> Groups:
    names = [f"{COMMON_GEN_FILES[split]}_{side}.txt" for side in ("src", "trg")]
    if not all(name in files for name in names):
        return {}
    sources, references = (files[name].read_text(encoding="utf-8").split("\n") for name in names)
    if len(sources) != len(references):
        raise RunError(f"{files[names[0]]} has {len(sources)} lines and {files[names[1]]} has {len(references)}.")
    return grouped(zip(sources, references, strict=True))


XSUM_ARCHIVE = "XSUM-EMNLP18-Summary-Data-Original.tar.gz"
XSUM_SPLITS = "XSum-TRAINING-DEV-TEST-SPLIT-90-5-5.json"
XSUM_PART = re.compile(r"\[SN\]([A-Z-]+)\[SN\]")
XSUM_LINKS = {
    *("Share this with", "Email", "Facebook", "Messenger", "Twitter", "Pinterest", "WhatsApp", "Linkedin", "LinkedIn"),
    *("Copy this link", "These are external links and will open in a new window"),
}
"""Lines of the web page that are no part of an article."""


def xsum(files: Files) -> Iterator[Pair]:
    """Read XSum in the splits that the list of BBC identifiers names; a member of the archive is an article.

    Args:
        files: Name of each official file to its path; all are needed.

    Yields:
        The pairs in the order of the archive.
    """
    splits = json.loads(files[XSUM_SPLITS].read_text(encoding="utf-8"))
    split_of_id: dict[str, Split] = {number: split for split in COMMON_GEN_FILES for number in splits[split]}
    for name, text in _members(files[XSUM_ARCHIVE], ".summary"):
        split = split_of_id.get(name)
        if split is None:
            continue
        lines = [line.strip() for line in text.splitlines()]
        pieces = XSUM_PART.split("\n".join(line for line in lines if line and line not in XSUM_LINKS))
        parts = dict(zip(pieces[1::2], pieces[2::2], strict=True))
        article, summary = (parts.get(part, "").strip() for part in ("RESTBODY", "FIRST-SENTENCE"))
        if article and summary:
            yield Pair(split, article, (summary,))


CNN_ARCHIVES = ("cnn_stories.tgz", "dailymail_stories.tgz")
CNN_LISTS: dict[str, Split] = {"all_train.txt": "train", "all_val.txt": "validation", "all_test.txt": "test"}
SENTENCE_ENDS = (".", "!", "?", "'", "`", '"', "’", "”", ")")


def cnn_dailymail(files: Files) -> Iterator[Pair]:
    """Read CNN/DailyMail 3.0.0.

    A story is named by the SHA-1 of its page's address, and a list of addresses is a split.

    Args:
        files: Name of each official file to its path; all are needed.

    Yields:
        The pairs in the order of the archive.
    """
    split_of_story: dict[str, Split] = {}
    for name, split in CNN_LISTS.items():
        for address in files[name].read_text(encoding="utf-8").splitlines():
            split_of_story[hashlib.sha1(address.strip().encode()).hexdigest()] = split
    for archive in CNN_ARCHIVES:
        for name, text in _members(files[archive], ".story"):
            article, highlights = _story(text)
            if name in split_of_story and article and highlights:
                yield Pair(split_of_story[name], article, (highlights,))


def _story(text: str) -> tuple[str, str]:
    """Return an article in one line and its highlights, a line each; a line without an end gets " .", as in 3.0.0."""
    article: list[str] = []
    highlights: list[str] = []
    lines = article
    for line in (line.strip() for line in text.splitlines()):
        if line.startswith("@highlight"):
            lines = highlights
        elif line:
            lines.append(line if line.endswith(SENTENCE_ENDS) else f"{line} .")
    return " ".join(article), "\n".join(highlights)


TLDR_FILES: dict[str, Split] = {"train.jsonl": "train", "valid.jsonl": "validation", "test.jsonl": "test"}


def reddit_tldr(files: Files) -> Iterator[Pair]:
    """Read the filtered TL;DR posts of "Learning to summarize from human feedback": a post is one JSON object a line.

    Args:
        files: Name of each official file to its path. A split whose file is missing is left out.

    Yields:
        The pairs, split by split.
    """
    for name, split in TLDR_FILES.items():
        if name not in files:
            continue
        with files[name].open(encoding="utf-8") as file:
            for row in map(json.loads, file):
                source = f"SUBREDDIT: r/{row['subreddit']}\n\nTITLE: {row['title']}\n\nPOST: {row['post']}".strip()
                if row["summary"].strip():
                    yield Pair(split, source, (row["summary"].strip(),))


HEALTHCAREMAGIC_FILE = "train-00000-of-00001-5e7cb295b9cff0bf.parquet"


def healthcaremagic(files: Files) -> Iterator[Pair]:
    """Read HealthCareMagic, one table, divided 8 : 1 : 1 by the text of the question, as `HubDataset` does.

    Args:
        files: Name of each official file to its path; the table is needed.

    Yields:
        The pairs in the order of the table.
    """
    from pyarrow import parquet  # slow to import

    for batch in parquet.ParquetFile(files[HEALTHCAREMAGIC_FILE]).iter_batches(columns=["input", "output"]):
        for row in batch.to_pylist():
            question, answer = (str(row[column] or "").strip() for column in ("input", "output"))
            if question and answer:
                yield Pair(_split_of(question), question, (answer,))


def _split_of(question: str) -> Split:
    split: Any = split_of(question)
    found: Split = split
    return found


def _members(archive: Path, ending: str) -> Iterator[tuple[str, str]]:
    """Yield the name and the text of the files in an archive, in its order, without folder and ending."""
    with tarfile.open(archive, "r|gz") as tar:
        for member in tar:
            opened: IO[bytes] | None = tar.extractfile(member) if member.name.endswith(ending) else None
            if opened is not None:
                text = opened.read().decode(errors="replace").replace("\r\n", "\n")
                yield Path(member.name).name.removesuffix(ending), text
