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
from hsdlab.data.docstring_prose import summary_and_source, words_of
from hsdlab.data.jsonl import read_examples
from hsdlab.models.cache_folder import cache_folder

PACKAGES = ("numpy", "torch", "transformers")
FORMAT = 1  # raise it whenever the examples change, so that cached ones are not used
PROMPT = "{source}\n\nSummarize the documentation above in one short sentence.\nSummary:"


class Docstrings(GenerationDataModule):
    """Documentation of the standard library, NumPy, PyTorch and transformers, with its one-line summaries.

    From the docstrings of classes, functions and methods: the reference is the summary line (PEP 257), the
    source is the prose that follows it. Parameter lists, code, tables and what is mostly markup are left out.
    Nothing is imported: the source files are parsed. The examples depend on the installed versions only. A
    module is in one split as a whole, and no eight words in a row of a source occur in another source. The
    first use writes the examples, in about 15 s, to `$HSDLAB_CACHE` (by default ~/.cache/hsdlab).

    For the pinned versions (Python 3.11.7): 2,406 train, 232 validation and 315 test examples; a source has
    41 words in the mean, a reference 11.

    Args:
        prompt: Template of the prompt; `{source}` stands for the source text.
        **kwargs: See `GenerationDataModule`.
    """

    def __init__(self, prompt: str = PROMPT, **kwargs: Any) -> None:
        super().__init__(prompt=prompt, **kwargs)

    def prepare_data(self) -> None:
        """Write the examples unless they are in the cache; Lightning calls it in one process a machine."""
        cached_folder()

    def load_examples(self, split: str) -> list[Example]:
        """Return the examples of `split`, by package and name."""
        return read_examples(cached_folder() / f"{split}.jsonl")


def cached_folder() -> Path:
    """Find the examples of the installed versions in the cache; create them on first use.

    Returns:
        The folder with train.jsonl, validation.jsonl and test.jsonl.
    """
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
    """Write train.jsonl, validation.jsonl and test.jsonl from the installed packages.

    Args:
        folder: An existing folder.
    """
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


# Not on every install, tests, or (modular_*) copies of another file.
_LEFT_OUT = re.compile(
    r"^(site-packages|dist-packages|idlelib|tkinter|turtledemo|lib2to3|ensurepip|distutils)/"
    r"|(^|/)(tests?|_internal|modular_\w+\.py)(/|$)"
)
_TRIPLE_QUOTED = re.compile(r'("""|\'\'\')(.*?)\1', re.DOTALL)


def source_files() -> Iterator[tuple[str, Path]]:
    """Find the source files of the standard library and the packages.

    Yields:
        The dotted name of each module, and its file, in a fixed order.

    Raises:
        ModuleNotFoundError: One of the packages is not installed.
    """
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
    """Parse the docstrings of a source file.

    Args:
        path: A Python file. A file that this Python cannot parse has none.

    Yields:
        The qualified name of each class, function or method, and its docstring.
    """
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
    """Make examples of docstrings, without those that repeat an earlier one.

    Args:
        documented: Module, qualified name and docstring, in a fixed order.

    Yields:
        The module of each example, and the example. No two share an id, a reference or eight words in a row of the
        source.
    """
    ids: set[str] = set()
    references: set[str] = set()
    runs: set[tuple[str, ...]] = set()
    for module, name, docstring in documented:
        pair = summary_and_source(docstring)
        if pair is None:
            continue
        summary, source = pair
        example = Example(f"{module}.{name}", source, (summary,))
        words = words_of(source)
        own_runs = {tuple(words[start : start + 8]) for start in range(len(words) - 7)}
        reference = " ".join(words_of(summary))
        if example.id in ids or reference in references or own_runs & runs:
            continue
        ids.add(example.id)
        references.add(reference)
        runs |= own_runs
        yield module, example


def split_of(module: str) -> str:
    """Choose the split of a module by the hash of its name: about 80, 10 and 10 % of all modules.

    Args:
        module: Its dotted name.

    Returns:
        "train", "validation" or "test".

    >>> split_of("asyncio.events")
    'train'
    """
    tenth = int(_digest(module), 16) % 10
    return {0: "test", 1: "validation"}.get(tenth, "train")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
