"""Every public function, method and class says what it takes, returns, raises and holds, in sections of Google's style.

A method that overrides one of a base class is documented there.
"""

import ast
import dataclasses
import importlib
import inspect
import pkgutil
import re
import textwrap
from collections.abc import Iterator
from functools import cached_property

import pytest

import hsdlab

MODULES = [
    info.name
    for info in pkgutil.walk_packages(hsdlab.__path__, "hsdlab.")
    if not any(part.startswith("_") for part in info.name.split("."))
]
SECTION = re.compile(r"^(Args|Returns|Yields|Raises|Attributes):\n((?:[ \t]+.*\n|\n)+)", re.MULTILINE)
COLON_OF_A_TYPE = re.compile(r"^(?:Returns|Yields):\n\s+(?=\S)(?!\w*Tensor \[)[^:\n`\"]*:\s", re.MULTILINE)


@pytest.mark.parametrize("name", MODULES)
def test_every_public_name_has_its_sections(name):
    missing = [line for what, thing in public(importlib.import_module(name)) for line in faults(what, thing)]
    assert not missing, "\n".join(missing)


def public(module) -> Iterator[tuple[str, object]]:
    """Yield the functions, classes and methods that a module defines, each with its name."""
    for name, thing in vars(module).items():
        if name.startswith("_") or getattr(thing, "__module__", None) != module.__name__:
            continue
        if inspect.isfunction(thing):
            yield name, thing
        elif inspect.isclass(thing):
            yield name, thing
            yield from ((f"{name}.{own}", member) for own, member in vars(thing).items() if is_own(thing, own, member))


def is_own(cls, name, member) -> bool:
    """Tell whether a member is a public method or property that no base class has."""
    is_method = inspect.isfunction(underlying(member)) and underlying(member).__qualname__.startswith(cls.__qualname__)
    return is_method and not name.startswith("_") and not any(name in vars(base) for base in cls.__mro__[1:])


def underlying(member):
    if isinstance(member, property):
        return member.fget
    return member.func if isinstance(member, cached_property) else getattr(member, "__func__", member)


def faults(name, thing) -> list[str]:
    """Return what the docstring of a function, method, property or class lacks."""
    if inspect.isclass(thing):
        return faults_of_class(name, thing)
    function = underlying(thing)
    doc = inspect.getdoc(function) or ""
    sections = sections_of(doc)
    found = lacking(name, "Raises", raised(function), sections)
    if isinstance(thing, property | cached_property):
        return found
    signature = inspect.signature(function)
    found += lacking(name, "Args", parameters(signature), sections)
    returns = signature.return_annotation
    if returns not in (None, "None", inspect.Signature.empty) and not {"Returns", "Yields"} & sections.keys():
        found.append(f"{name}: no Returns or Yields")
    if COLON_OF_A_TYPE.search(doc):
        found.append(f"{name}: Sphinx takes the words before the first colon of Returns for a type")
    return found


def faults_of_class(name, cls) -> list[str]:
    sections = sections_of(inspect.cleandoc(cls.__doc__ or ""))
    if dataclasses.is_dataclass(cls) or hasattr(cls, "_fields"):
        inherited = {field for base in cls.__mro__[1:] for field in vars(base).get("__annotations__", {})}
        own = [field for field in vars(cls).get("__annotations__", {}) if not field.startswith("_")]
        wanted = [field for field in own if field not in inherited]
        return lacking(name, "Args" if "Args" in sections else "Attributes", wanted, sections)
    if "__init__" not in vars(cls) or getattr(cls, "_is_protocol", False):
        return []
    found = lacking(name, "Args", parameters(inspect.signature(cls.__init__)), sections)
    return found + lacking(name, "Raises", raised(cls.__init__), sections)


def lacking(name, section, wanted, sections) -> list[str]:
    missing = [each for each in wanted if each not in sections.get(section, "")]
    return [f"{name}: {section} without {', '.join(missing)}"] if missing else []


def parameters(signature) -> list[str]:
    return [name for name in signature.parameters if name not in ("self", "cls") and not name.startswith("_")]


def sections_of(doc) -> dict[str, set[str]]:
    """Return the names that each section of a docstring describes."""
    names: dict[str, set[str]] = {}
    for title, chunk in re.findall(SECTION, f"{doc}\n"):
        heads = re.findall(r"^([^\s:][^:]*):", textwrap.dedent(chunk), re.MULTILINE)
        names[title] = {word.strip(" *`") for head in heads for word in re.sub(r"\(.*?\)", "", head).split(",")}
    return names


def raised(function) -> list[str]:
    """Return the names of the exceptions that a function's own statements raise, those of inner functions left out."""
    try:
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body
    except (OSError, SyntaxError):  # made by a library: a dataclass's __init__, a wrapped one
        return []
    names: set[str] = set()
    nodes = list(ast.iter_child_nodes(tree))
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef):
            continue
        nodes += ast.iter_child_nodes(node)
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            name = ast.unparse(node.exc.func).rpartition(".")[2]
            if name[0].isupper() and name != "NotImplementedError":
                names.add(name)
    return sorted(names)


# ---- the check itself


def whole(rows: int, *others: str, **more: str) -> int:
    """Add.

    Args:
        rows: How many.
        *others: More.
        **more: More by name.

    Returns:
        The sum.

    Raises:
        ValueError: Never.
    """
    if rows < 0:
        raise ValueError(rows)
    return rows


def bare(rows: int) -> int:
    """Add."""
    if rows < 0:
        raise ValueError(rows)
    return rows


def typed_by_mistake() -> int:
    """Count.

    Returns:
        Rows: as many as there are.
    """
    return 1


@dataclasses.dataclass
class Halved:
    """A record.

    Attributes:
        rows: How many.
    """

    rows: int
    layers: int


class Made:
    """A thing."""

    def __init__(self, rows: int) -> None:
        self.rows = rows


@pytest.mark.parametrize(
    ("thing", "expected"),
    [
        (whole, []),
        (bare, ["x: Raises without ValueError", "x: Args without rows", "x: no Returns or Yields"]),
        (typed_by_mistake, ["x: Sphinx takes the words before the first colon of Returns for a type"]),
        (Halved, ["x: Attributes without layers"]),
        (Made, ["x: Args without rows"]),
    ],
)
def test_the_check_finds_what_is_missing(thing, expected):
    assert faults("x", thing) == expected
