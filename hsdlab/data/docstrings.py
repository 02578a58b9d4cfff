"""The embedded data set: documentation that every install has, as (text, one-line summary) pairs."""

import ast
import gc
import hashlib
import importlib.metadata
import importlib.util
import inspect
import json
import platform
import re
import shutil
import sysconfig
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.progress import track

from hsdlab.data.base import SPLITS, Example, GenerationDataModule
from hsdlab.data.jsonl import read_examples
from hsdlab.models.cache_folder import cache_folder

PACKAGES = ("numpy", "torch", "transformers")
FORMAT = 1  # raise it whenever the examples change, so that cached ones are not used
SUMMARY_WORDS = (5, 25)
SOURCE_WORDS = (20, 120)
PROMPT = "{source}\n\nSummarize the documentation above in one short sentence.\nSummary:"


class Docstrings(GenerationDataModule):
    """Documentation of the standard library, NumPy, PyTorch and transformers, with its one-line summaries.

    From the docstrings of classes, functions and methods: the reference is the summary line (PEP 257), the
    source is the prose that follows it. Parameter lists, code, tables and what is mostly markup are left out.
    Nothing is imported: the source files are parsed. The examples depend on the installed versions only. A
    module is in one split as a whole, and no eight words in a row of a source occur in another source. The
    examples are made once, in about 15 s, and kept under `$HSDLAB_CACHE` (by default ~/.cache/hsdlab).

    For the pinned versions (Python 3.11.7): 2,406 train, 232 validation and 315 test examples; a source has
    41 words in the mean, a reference 11.

    Args:
        prompt: Template of the prompt; `{source}` stands for the source text.
        **kwargs: See `GenerationDataModule`.
    """

    def __init__(self, prompt: str = PROMPT, **kwargs: Any) -> None:
        super().__init__(prompt=prompt, **kwargs)

    def prepare_data(self) -> None:
        """Make the examples unless they are in the cache; Lightning calls it in one process a machine."""
        cached_folder()

    def load_examples(self, split: str) -> list[Example]:
        """Return the examples of `split`, by package and name."""
        return read_examples(cached_folder() / f"{split}.jsonl")


def cached_folder() -> Path:
    """Return the folder with the three JSON Lines files of the installed versions, made on first use."""
    versions = [f"{package} {importlib.metadata.version(package)}" for package in PACKAGES]
    key = _digest("; ".join([f"format {FORMAT}", f"python {platform.python_version()}", *versions]))[:16]
    cache = cache_folder()
    folder = cache / f"docstrings-{key}"
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f"{folder.name}-", dir=cache))
    try:
        write_examples(scratch)
        try:
            scratch.rename(folder)  # atomic: a reader sees all or nothing
        except OSError:
            if not folder.is_dir():  # else another process was faster, with the same examples
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder


def write_examples(folder: Path) -> None:
    """Write train.jsonl, validation.jsonl and test.jsonl from the installed packages."""
    lines: dict[str, list[str]] = {split: [] for split in SPLITS}
    files = list(source_files())
    documented = (
        (module, name, docstring)
        for module, path in track(files, description="Reading the documentation of installed packages")
        for name, docstring in docstrings_of(path)
    )
    with _swift_and_quiet():
        for module, example in distinct_examples(documented):
            lines[split_of(module)].append(json.dumps(asdict(example), ensure_ascii=False) + "\n")
    for split in SPLITS:
        (folder / f"{split}.jsonl").write_text("".join(lines[split]), encoding="utf-8")


@contextmanager
def _swift_and_quiet() -> Iterator[None]:
    """Parse without garbage collection, which doubles the time, and without others' warnings."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        if was_enabled:
            gc.enable()


# ---- finding docstrings

# Not on every install, tests, or (modular_*) copies of another file.
_LEFT_OUT = re.compile(
    r"^(site-packages|dist-packages|idlelib|tkinter|turtledemo|lib2to3|ensurepip|distutils)/"
    r"|(^|/)(tests?|_internal|modular_\w+\.py)(/|$)"
)
_TRIPLE_QUOTED = re.compile(r'("""|\'\'\')(.*?)\1', re.DOTALL)


def source_files() -> Iterator[tuple[str, Path]]:
    """Yield (dotted module name, file) of the standard library and the packages, in a fixed order."""
    roots = [("", Path(sysconfig.get_path("stdlib")))]
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            raise ModuleNotFoundError(f"{package} is not installed: pip install {package}")
        roots.append((package, Path(spec.origin).parent))
    for package, root in roots:
        for path in sorted(root.rglob("*.py")):
            relative = path.relative_to(root)
            if not _LEFT_OUT.search(relative.as_posix()):
                parts = [package, *relative.with_suffix("").parts]
                yield ".".join(part for part in parts if part not in ("", "__init__")), path


def docstrings_of(path: Path) -> Iterator[tuple[str, str]]:
    """Yield (qualified name, docstring) of the classes, functions and methods of a file."""
    code = path.read_text(encoding="utf-8", errors="ignore")
    # Parsing is slow: before it, leave out the files (most) without any text that could be an example.
    if not any(summary_and_source(inspect.cleandoc(text)) for _, text in _TRIPLE_QUOTED.findall(code)):
        return
    try:
        tree = ast.parse(code)
    except SyntaxError:  # a file for another Python version
        return
    yield from _docstrings_in(tree, "")


def _docstrings_in(parent: ast.Module | ast.ClassDef, prefix: str) -> Iterator[tuple[str, str]]:
    for node in parent.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node)
            if docstring:
                yield prefix + node.name, docstring
            if isinstance(node, ast.ClassDef):
                yield from _docstrings_in(node, f"{prefix}{node.name}.")


def distinct_examples(documented: Iterable[tuple[str, str, str]]) -> Iterator[tuple[str, Example]]:
    """Yield (module, example) of each (module, name, docstring) that makes one and repeats no earlier one."""
    ids: set[str] = set()
    references: set[str] = set()
    runs: set[tuple[str, ...]] = set()
    for module, name, docstring in documented:
        pair = summary_and_source(docstring)
        if pair is None:
            continue
        summary, source = pair
        example = Example(f"{module}.{name}", source, (summary,))
        words = _words(source)
        own_runs = {tuple(words[start : start + 8]) for start in range(len(words) - 7)}
        reference = " ".join(_words(summary))
        if example.id in ids or reference in references or own_runs & runs:
            continue
        ids.add(example.id)
        references.add(reference)
        runs |= own_runs
        yield module, example


def split_of(module: str) -> str:
    """Return the split of a module by the hash of its name: about 80, 10 and 10 % of all modules.

    >>> split_of("asyncio.events")
    'train'
    """
    tenth = int(_digest(module), 16) % 10
    return {0: "test", 1: "validation"}.get(tenth, "train")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


# ---- docstring to example

_HEADER = (
    r"(?:Args|Arguments|Params?|Parameters?|Returns?|Raises|Yields|Examples?|Notes?|NOTE|Usage|Attributes|Inputs?"
    r"|Outputs?|Shape|Warnings?|Keyword [Aa]rg\w*|References?|See [Aa]lso|Todo|TODO|Caution|Deprecated|Tips?"
    r"|Requires?|Limitations)\b[^\n.]{0,20}:"
)
# A section, field list, doctest or directive ends the paragraph before it.
_BREAK = re.compile(rf"\n(?=[ \t]*(?:{_HEADER}|[:@]\w|>>>|\.\. ))")
# Lines of lists, tables, code, sections and definitions (an indented line).
_NOT_PROSE = re.compile(
    r"^(?:\s+\S|[-*+•|#@$=~^>]|\.\.|:\w|\(?[\da-zA-Z][.)]\s|```|[A-Z][\w ]{0,30}:\s*$|TODO|FIXME|XXX|NB|"
    rf"{_HEADER})",
    re.MULTILINE,
)
# Light markup; what stays of each is its group.
_MARKUP = (
    re.compile(r":[\w:+-]+:`~?([^`<]+?)(?: <[^`]*>)?`"),  # :class:`X`
    re.compile(r"\[`+~?([^`]+)`+\](?:\([^)]*\))?"),  # [`X`], [`X`](url)
    re.compile(r"\[([^\]]+)\]\([^)]*\)"),  # [text](url)
    re.compile(r"``([^`]+)``"),
    re.compile(r"`([^`<]+?)(?: <[^`]*>)?`_{0,2}"),  # `X`, `text <url>`_
    re.compile(r"\*\*([^*]+)\*\*"),
    re.compile(r"(?<![\w*])\*([A-Za-z][\w ]*)\*(?![\w*])"),
)
# What is left of markup, code and addresses, and calls within calls.
_NOT_TEXT = re.compile(r">>>|://|www\.|[{}|`$^~\\]|%\(|==|[=-]>|<-|TODO|FIXME|XXX|\*\*|\[\[|\w\(.*\w\(.*\w\(.*\w\(")
_PLAIN_WORD = re.compile(r"[(\"']?[A-Za-z][a-z]*(?:[-/'’][A-Za-z]?[a-z]+)*[\"')]?[.,;:!?]?[\"')]?")
_FIRST_SENTENCE = re.compile(r"(.*?(?<!e\.g)(?<!i\.e)(?<! vs)(?<!etc)[.!?][)\"']?) +(?=[A-Z\"'(])(.*)")
# Words that say nothing about a text's subject, by their first five letters.
_COMMON_STEMS = {
    *("this", "that", "with", "from", "when", "will", "which", "used", "have", "wheth", "into", "given"),
    *("retur", "class", "funct", "metho", "objec", "value"),
}


def summary_and_source(docstring: str) -> tuple[str, str] | None:
    """Return the one-line summary of a docstring and the prose that follows it, or None if it is no example.

    >>> summary_and_source('''Find the ``best`` path in a graph.
    ...
    ... The path is the one whose edges have the smallest sum of weights; of two such paths the one with fewer
    ... edges is taken.
    ...
    ... Args:
    ...     graph: The graph.
    ... ''')[0]
    'Find the best path in a graph.'
    """
    first, *paragraphs = re.split(r"\n[ \t]*\n", _BREAK.sub("\n\n", docstring.strip()))
    if len(docstring.split()) < SUMMARY_WORDS[0] + SOURCE_WORDS[0] or _NOT_PROSE.search(first):
        return None
    first = _clean(first)
    sentences = _FIRST_SENTENCE.fullmatch(first)
    summary, remainder = sentences.groups() if sentences else (first, "")
    if not _is_summary(summary) or (remainder and not _is_prose(remainder)):
        return None
    source = remainder
    for paragraph in paragraphs:
        text = _clean(paragraph)
        longer = f"{source} {text}".strip()
        if _NOT_PROSE.search(paragraph) or not _is_prose(text) or len(longer.split()) > SOURCE_WORDS[1]:
            break
        source = longer
    if not SOURCE_WORDS[0] <= len(source.split()) <= SOURCE_WORDS[1]:
        return None
    if " ".join(_words(summary)) in " ".join(_words(source)) or not _stems(summary) & _stems(source):
        return None  # nothing to write, or about something else
    return summary, source


def _clean(paragraph: str) -> str:
    """Return a paragraph on one line, without light markup."""
    text = " ".join(paragraph.split())
    for pattern in _MARKUP:
        text = pattern.sub(r"\1", text)
    return text


def _is_summary(text: str) -> bool:
    return (
        SUMMARY_WORDS[0] <= len(text.split()) <= SUMMARY_WORDS[1]
        and text[0].isupper()
        and text[-1] not in ":;,"
        and not _NOT_TEXT.search(text)
        and _plain_share(text) >= 0.7
    )


def _is_prose(text: str) -> bool:
    return (
        re.match(r"[A-Z\"'(]", text) is not None
        and re.search(r"[.!?][)\"']*$", text) is not None
        and not _NOT_TEXT.search(text)
        and _plain_share(text) >= 0.75
    )


def _plain_share(text: str) -> float:
    """Return the share of words that are written as in plain English, not names or numbers."""
    words = text.split()
    return sum(_PLAIN_WORD.fullmatch(word) is not None for word in words) / len(words)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _stems(text: str) -> set[str]:
    return {word[:5] for word in re.findall(r"[a-z]{4,}", text.lower())} - _COMMON_STEMS
