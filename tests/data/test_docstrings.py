import gc
import importlib.metadata

import pytest

from hsdlab.data import Docstrings, docstrings
from hsdlab.data.base import SPLITS
from hsdlab.data.docstring_prose import summary_and_source
from hsdlab.data.docstrings import (
    cached_folder,
    distinct_examples,
    docstrings_of,
    source_files,
    split_of,
    write_examples,
)

SUMMARY = "Find the best path in a graph."
PROSE = """The path is the one whose edges have the smallest sum of weights; of two such paths the one
with fewer edges is taken."""
SOURCE = PROSE.replace("\n", " ")
MODULES = {split: next(f"m{n}" for n in range(99) if split_of(f"m{n}") == split) for split in SPLITS}


def words_of(text):
    return "".join(letter if letter.isalnum() or letter == "_" else " " for letter in text.lower()).split()


def all_of(splits):
    return [example for examples in splits.values() for example in examples]


@pytest.fixture(scope="module")
def splits(tmp_path_factory):
    """The real examples, made from the installed packages, which takes as long as thirty other tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HSDLAB_CACHE", str(tmp_path_factory.mktemp("cache")))
        data = Docstrings()
        data.prepare_data()
        return {split: data.load_examples(split) for split in SPLITS}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, with one small module a split in the place of the installed packages."""
    texts = {"train": "river", "validation": "mountain", "test": "valley"}
    for split, word in texts.items():
        prose = " ".join(f"the {word} has a {word} path {number}" for number in "abc")
        code = f'def find():\n    """Find the {word} path.\n\n    Note that {prose} and more {word}.\n    """\n'
        (tmp_path / f"{MODULES[split]}.py").write_text(code.replace("Find the", "Find the shortest and best"))
    files = [(module, tmp_path / f"{module}.py") for module in MODULES.values()]
    monkeypatch.setattr(docstrings, "source_files", lambda: iter(files))
    monkeypatch.setenv("HSDLAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.slow
def test_the_installed_packages_give_enough_in_80_10_10(splits):
    sizes = {split: len(examples) for split, examples in splits.items()}
    assert sum(sizes.values()) > 2500
    assert 0.75 < sizes["train"] / sum(sizes.values()) < 0.85
    assert min(sizes["validation"], sizes["test"]) > 200
    for examples in splits.values():
        roots = {example.id.split(".")[0] for example in examples}
        assert {"numpy", "torch", "transformers"} < roots
        assert len(roots) > 10  # modules of the standard library


@pytest.mark.slow
def test_summaries_and_sources_are_prose_of_the_right_length(splits):
    for example in all_of(splits):
        (summary,) = example.references
        assert 5 <= len(summary.split()) <= 25
        assert 20 <= len(example.source.split()) <= 120
        assert " ".join(words_of(summary)) not in " ".join(words_of(example.source))
        for mark in (">>>", "`", "://", "Args:", "Parameters:", "Returns:", ":param", "\n", "{"):
            assert mark not in summary + example.source


@pytest.mark.slow
def test_no_module_and_no_text_is_in_two_splits(splits):
    modules = {module for module, _ in source_files()}
    split_of_module, owner_of_run = {}, {}
    for split, examples in splits.items():
        for example in examples:
            module = example.id
            while module not in modules:
                module = module.rpartition(".")[0]
            assert split_of_module.setdefault(module, split) == split
            words = words_of(example.source)
            for start in range(len(words) - 7):
                assert owner_of_run.setdefault(tuple(words[start : start + 8]), example.id) == example.id
    examples = all_of(splits)
    assert len(owner_of_run) > 10 * len(examples)
    assert len({example.id for example in examples}) == len(examples)
    assert len({" ".join(words_of(example.references[0])) for example in examples}) == len(examples)


def test_modules_are_drawn_evenly():
    drawn = [split_of(f"package.module_{number}") for number in range(10_000)]
    assert drawn.count("test") == pytest.approx(1000, abs=100)
    assert drawn.count("validation") == pytest.approx(1000, abs=100)
    assert [split_of(module) for module in ("asyncio.events", "numpy.ma.core")] == ["train", "train"]


def test_examples_are_made_once(cache, monkeypatch):
    data = Docstrings()
    assert [example.id for example in data.load_examples("test")] == [f"{MODULES['test']}.find"]
    monkeypatch.setattr(docstrings, "write_examples", lambda folder: pytest.fail("made twice"))
    (example,) = data.load_examples("validation")
    assert example.references == ("Find the shortest and best mountain path.",)


def test_other_versions_have_other_examples(cache, monkeypatch):
    folder = cached_folder()
    version = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version(name) + ".1" * (name == "numpy"))
    assert cached_folder() != folder
    assert len(list(cache.iterdir())) == 2


def test_the_same_install_gives_the_same_bytes(cache, tmp_path):
    made = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        write_examples(tmp_path / name)
        made.append([(tmp_path / name / f"{split}.jsonl").read_bytes() for split in SPLITS])
    assert made[0] == made[1]
    assert all(made[0])


def test_an_interrupted_run_leaves_nothing_behind(cache, monkeypatch):
    def interrupted(folder):
        (folder / "train.jsonl").write_text("half")
        raise KeyboardInterrupt

    monkeypatch.setattr(docstrings, "write_examples", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cached_folder()
    assert list(cache.iterdir()) == []


def test_two_processes_at_once_make_one_folder(cache, monkeypatch):
    write, made = docstrings.write_examples, []

    def with_a_rival(folder):
        monkeypatch.setattr(docstrings, "write_examples", write)
        made.append(cached_folder())
        write(folder)

    monkeypatch.setattr(docstrings, "write_examples", with_a_rival)
    assert cached_folder() == made[0]
    assert list(cache.iterdir()) == made


def test_garbage_collection_is_on_again_afterwards(cache, monkeypatch):
    monkeypatch.setattr(docstrings, "split_of", lambda module: 1 / 0 if not gc.isenabled() else "train")
    with pytest.raises(ZeroDivisionError):
        cached_folder()
    assert gc.isenabled()


def test_files_are_parsed_not_imported(tmp_path):
    path = tmp_path / "loud.py"
    path.write_text(
        f'raise RuntimeError("imported")\nclass A:\n    async def f(self):\n        """{SUMMARY}\n\n{PROSE}"""\n'
    )
    ((name, docstring),) = docstrings_of(path)
    assert name == "A.f"
    assert summary_and_source(docstring) == (SUMMARY, SOURCE)
    path.write_text(f'"""{SUMMARY}\n\n{PROSE}"""\nprint "Python 2"\n')
    assert list(docstrings_of(path)) == []


@pytest.mark.parametrize(
    ("docstring", "summary", "source"),
    [
        (f"{SUMMARY}\n\n{PROSE}", SUMMARY, SOURCE),
        (f"{SUMMARY}\n\n{PROSE}\nArgs:\n    graph: A graph.", SUMMARY, SOURCE),
        (f"{SUMMARY}\n\n{PROSE}\n\n>>> find()\n3", SUMMARY, SOURCE),
        (f"{SUMMARY}\n\n{PROSE}\n:param graph: A graph.", SUMMARY, SOURCE),
        (f"{SUMMARY}\n\n{PROSE}\n\nParameters\n----------\ngraph : a graph", SUMMARY, SOURCE),
        (f"{SUMMARY}\n\n{PROSE}\n\nIt is the path itself.", SUMMARY, SOURCE + " It is the path itself."),
        (f"{SUMMARY}\n\n{PROSE}\n\n{f'{PROSE} ' * 5}".strip(), SUMMARY, SOURCE),  # together over 120 words
        (f"{SUMMARY} It is the path itself.\n\n{PROSE}", SUMMARY, "It is the path itself. " + SOURCE),
        (f"Find paths, e.g. A-B, in a graph.\n\n{PROSE}", "Find paths, e.g. A-B, in a graph.", SOURCE),
        (
            f"Find the ``best`` **path** in a :class:`~toy.Graph`, [`Tree`] or `that <toy.html>`_\n\n{PROSE}",
            "Find the best path in a toy.Graph, Tree or that",
            SOURCE,
        ),
    ],
)
def test_a_docstring_becomes_a_summary_and_its_prose(docstring, summary, source):
    assert summary_and_source(docstring) == (summary, source)


@pytest.mark.parametrize(
    "docstring",
    [
        "",
        SUMMARY,
        f"Find a path.\n\n{PROSE}",  # a summary under five words
        f"{'Find the best path in a graph, ' * 4}or none.\n\n{PROSE}",  # over 25
        f"{SUMMARY}\n\nThe path may be empty.\n\nArgs:\n{PROSE}",  # prose under 20 words
        f"{SUMMARY}\n\n{PROSE * 6}",  # over 120
        f"{SUMMARY}\n\n{PROSE[:-1]}:",  # leads up to a list
        f"{SUMMARY}\n\nArgs:\n    {PROSE}",
        f"{SUMMARY}\n\n- {PROSE}",
        f"{SUMMARY}\n\n1. {PROSE}",
        f"{SUMMARY}\n\n.. note:: {PROSE}",
        f"{SUMMARY}\n\n>>> {PROSE}",
        f"{SUMMARY}\n\n| {PROSE} |",
        f"{SUMMARY}\n\nSee https://example.org/path. {PROSE}",
        f"{SUMMARY}\n\n{PROSE}\n    weights = graph.weights()",
        f"{SUMMARY}\n\nThe path {{x}} of {PROSE}",
        f"{SUMMARY}\n\nThe G1 g_2 p3.q x_y f(z) a_b c_d e_f g_h i_j. {PROSE}",  # mostly names
        f"{SUMMARY}\n\nTHIS: {SUMMARY} {PROSE}",  # the summary again
        "Count the letters of a word.\n\n" + PROSE,  # about something else
        f"find the best path in a graph.\n\n{PROSE}",
        f"Find the best path in a graph,\n\n{PROSE}",
        f"{SUMMARY} Use graph[{{}}] for it.\n\n{PROSE}",
    ],
)
def test_other_docstrings_make_no_example(docstring):
    assert summary_and_source(docstring) is None


def test_an_example_that_repeats_an_earlier_one_is_left_out():
    other = "A path of nodes may be longer than any other path: it visits each of all the nodes of one graph."
    assert summary_and_source(f"{SUMMARY}\n\n{other}") is not None
    documented = [
        ("a", "f", f"{SUMMARY}\n\n{PROSE}"),
        ("b", "f", f"Search for a good path here.\n\n{PROSE} It is unique."),  # the same source, and more
        ("b", "g", f"find the BEST path, in a graph\n\n{other}".replace("find", "Find")),  # the same summary
        ("a", "f", f"Visit all nodes along a path.\n\n{other}"),  # the same name
        ("c", "f", f"Visit all nodes along a path.\n\n{other}"),
    ]
    assert [example.id for _, example in distinct_examples(documented)] == ["a.f", "c.f"]
