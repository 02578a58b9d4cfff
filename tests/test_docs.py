"""The documentation is true of the code: its examples run, its command lines parse, its links lead somewhere.

The built site is the business of test_site.py.
"""

import inspect
import itertools
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest

import hsdlab
import hsdlab.strategies
from benchmarks import performance, reconstruction
from benchmarks.markers import filled
from hsdlab import HSD, FullDepth, SkipStrategy
from hsdlab.cli import main, names
from hsdlab.cli.commands import BESIDE
from hsdlab.cli.train import TrainCLI
from hsdlab.program import of_train
from hsdlab.records.comparison import Comparison, compare_results
from hsdlab.records.provenance import GitState
from hsdlab.reporting.comparison import write_comparison
from hsdlab.runs.bench import run_bench
from hsdlab.runs.bench_cells import Batch, BenchOptions, Cell
from hsdlab.runs.tune import scheduled_classes
from hsdlab.testing import prompts, tiny_model
from tests.doc_records import RUN, strategy_result
from tests.markdown_tables import unpadded
from tests.tiny_checkpoints import save, tiny_llama
from tests.tiny_runs import ParseOnly, run, write_examples

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
SITE_PAGES = [*sorted(DOCS.glob("*.md")), *sorted(DOCS.glob("strategies/*.md"))]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *SITE_PAGES]
README = (ROOT / "README.md").read_text(encoding="utf-8")
GENERATED = ("_build/", "_generated/", "notebooks/")  # what a build of the site makes in docs/


def blocks(page, language):
    """The contents of the fenced blocks of one language; a command that goes on in the next line is one line."""
    return re.findall(
        rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8").replace("\\\n", ""), re.DOTALL | re.MULTILINE
    )


def name(page):
    return str(page.relative_to(ROOT))


REPORT = "hsdlab report "
COMMANDS = [
    pytest.param(line.split("#")[0].strip(), id=f"{page.relative_to(ROOT)}-{line[:40]}-{number}")
    for page in PAGES
    for block in blocks(page, "bash")
    for number, line in enumerate(block.splitlines())
    if line.split("#")[0].strip() and not line.startswith(REPORT)
]
REPORTS = [
    line for block in blocks(DOCS / "commands.md", "bash") for line in block.splitlines() if line.startswith(REPORT)
]
(RUN_FROM_PYTHON,) = [block for block in blocks(ROOT / "README.md", "python") if "hsdlab.runs import compare" in block]
LAUNCHERS = r"^(torchrun( --\S+)* -m hsdlab\.cli|srun hsdlab) "  # several processes of one command


@pytest.fixture
def as_a_user(tmp_path, monkeypatch):
    """A folder with a model, data and `my_package.py` by the names that the pages give them, where Python looks."""
    (module,) = [block for block in blocks(DOCS / "own_strategy.md", "python") if block.startswith("# my_package.py\n")]
    save(tiny_llama(), tmp_path / "my_model")
    write_examples(tmp_path / "my_data")
    (tmp_path / "my_package.py").write_text(module, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_package", raising=False)
    yield tmp_path
    sys.modules.pop("my_package", None)


@pytest.mark.filterwarnings("default")  # as in a script: deprecations are the business of the other tests
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=name)
def test_python_examples_run(page, as_a_user):
    for block in blocks(page, "python"):
        if block == RUN_FROM_PYTHON:
            continue  # which test_the_report_commands_draw_the_run_of_the_python_example runs
        # From top to bottom, each with the imports that it shows; `__name__` as in a script.
        exec(compile(block, f"{page.name}: {block[:40]!r}", "exec"), {"__name__": "__main__"})


@pytest.mark.slow
def test_the_report_commands_draw_the_run_of_the_python_example(as_a_user):
    names = {}
    exec(compile(RUN_FROM_PYTHON, "README.md", "exec"), names)
    rows = [row.name for row in names["comparison"].rows]
    assert [name.partition("(")[0] for name in rows] == ["FullDepth", "HSD", "SkipDecode"]
    shutil.copytree("runs/from_python", "runs/skip_aware")  # in place of the run of another model
    table = Path("runs/from_python/comparison.md").read_text(encoding="utf-8")
    Path("runs/from_python/comparison.md").unlink()
    one, joined = (shlex.split(command)[1:] for command in REPORTS)
    main(one)
    main(joined)
    assert Path("runs/from_python/comparison.md").read_text(encoding="utf-8") == table
    both = Comparison.read(Path("runs/both/comparison.json"))
    assert [(row.run, row.name) for row in both.rows] == list(itertools.product(["plain", "skip-aware"], rows))
    assert both.rows[4].quality == both.rows[1].quality


class ParseOnlyTraining(TrainCLI):
    """Parses the command line of train.py and stops."""

    before_instantiate_classes = ParseOnly.before_instantiate_classes
    instantiate_classes = ParseOnly.instantiate_classes
    after_instantiate_classes = ParseOnly.after_instantiate_classes
    _run_subcommand = ParseOnly._run_subcommand


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_parse(command, as_a_user, monkeypatch):
    program, *arguments = shlex.split(re.sub(LAUNCHERS, "hsdlab ", command))
    if program == "source":
        assert arguments == [".venv/bin/activate"]  # made by `make install`
    elif program == "make":
        (target,) = arguments
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    elif arguments[0] in BESIDE:
        assert program == "hsdlab"
        assert callable(import_module(BESIDE[arguments[0]][1]).main)
    else:
        assert program == "hsdlab"
        trained = {of_train(each): each for each in names.TRAIN}
        name = trained.get(arguments[0], arguments[0].replace("-", "_"))
        cli = ParseOnlyTraining if arguments[0] in trained else ParseOnly
        config = run(monkeypatch, name, *arguments[1:], cli=cli)
        made = config.parser.instantiate(config.config, instantiate_groups=False)[config.subcommand]
        if config.subcommand == "tune":
            assert scheduled_classes(made.classes)
            return
        strategies = made.get("strategies") or ([made.skip] if "skip" in made else [])
        assert all(isinstance(strategy, SkipStrategy) for strategy in strategies)


def test_the_skip_of_a_command_is_the_one_it_names(as_a_user, monkeypatch):
    command = next(c.values[0] for c in COMMANDS if "my_package.EveryOther" in c.values[0])
    config = run(monkeypatch, *shlex.split(command)[1:], cli=ParseOnly)
    assert config.config.test.skip.class_path == "my_package.EveryOther"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_and_paths_exist(page):
    text = page.read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)", text)
    # File names in code, with or without a folder of the project; not placeholders such as <name>.py.
    paths = re.findall(r"`((?:hsdlab|tests|docs|configs|notebooks)/[\w./-]*)`", text)
    paths += re.findall(r"\bconfigs/[\w/]+\.yaml", text)
    for link in links:
        if page.is_relative_to(DOCS) and link.removeprefix("../").startswith(GENERATED):
            continue  # Sphinx fails where it is missing
        assert (page.parent / link).exists(), f"{page.name} links to {link}"
    for path in paths:
        if path.startswith("docs/") and path.removeprefix("docs/").startswith(GENERATED):
            continue
        assert (ROOT / path).exists(), f"{page.name} names {path}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_anchors_exist(page):
    text = page.read_text(encoding="utf-8")
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= anchors


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 200


WIDER = ("results.md", "early_exit.md", "CHANGELOG.md")  # two are generated, one has been wrapped at other widths


def prose(page):
    """The lines of a page that are no code, table, heading, link alone or generated part."""
    text = re.sub(r"<!-- (\w+):begin -->.*?<!-- \1:end -->", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    text = re.sub(r"^(```+|\$\$).*?^\1$", "", text, flags=re.DOTALL | re.MULTILINE)
    return [line for line in text.splitlines() if not line.startswith(("|", "#", "!["))]


@pytest.mark.parametrize("page", [p for p in [*PAGES, ROOT / "configs/README.md"] if p.name not in WIDER], ids=name)
def test_prose_is_120_characters_wide_at_most(page):
    assert [line for line in prose(page) if len(line) > 120] == []


STRATEGIES = [
    value
    for value in vars(hsdlab.strategies).values()
    if inspect.isclass(value) and issubclass(value, SkipStrategy) and not inspect.isabstract(value)
]


def strategy_page(strategy):
    """The page of a strategy, by the link in the table of README.md."""
    (link,) = re.findall(rf"^\| \[`{strategy.__name__}`\]\(([^)]+)\) \|", README, re.MULTILINE)
    return ROOT / link


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda strategy: strategy.__name__)
def test_every_strategy_has_a_page_with_formula_picture_source_and_all_parameters(strategy):
    page = strategy_page(strategy)
    text = page.read_text(encoding="utf-8")
    assert re.search(r"^\$\$\n.+?^\$\$$", text, re.DOTALL | re.MULTILINE)
    assert f"](../_generated/{page.stem}.svg)" in text
    assert "**Source.**" in text
    assert "**Reconstruction.**" in text or strategy is FullDepth
    (table,) = re.findall(r"^\| Parameter \|.*?\n\n", text, re.DOTALL | re.MULTILINE)
    parameters = list(inspect.signature(strategy).parameters)
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == parameters


def test_the_pages_of_strategies_are_those_of_the_strategies():
    pages = {strategy_page(strategy) for strategy in STRATEGIES}
    assert pages == {page for page in (DOCS / "strategies").glob("*.md") if page.name != "index.md"}


def test_contributing_has_the_ten_laws():
    (section,) = re.findall(
        r"^## The laws\n(.*?)^## ", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL | re.MULTILINE
    )
    assert re.findall(r"^(\d+)\. ", section, re.MULTILINE) == [str(number) for number in range(1, 11)]


def test_the_citation_names_this_version():
    (version,) = re.findall(r"version = \{(.*)\}", (DOCS / "cite.md").read_text(encoding="utf-8"))
    assert version == hsdlab.__version__


def test_sections_that_the_code_refers_to_exist():
    """Error messages and docstrings send the reader to these."""
    assert "## Add a model family" in (ROOT / "CONTRIBUTING.md").read_text()


def test_the_reconstruction_is_up_to_date():
    text = reconstruction.PAGE.read_text(encoding="utf-8")
    assert reconstruction.page(text) == text, "run python -m benchmarks.reconstruction"


def test_markers_are_filled_and_missing_ones_refused():
    text = "a\n<!-- x:begin -->\nold\n<!-- x:end -->\nb"
    assert filled(text, "x", "new \\1") == "a\n<!-- x:begin -->\nnew \\1\n<!-- x:end -->\nb"
    with pytest.raises(ValueError, match="y:begin"):
        filled(text, "y", "new")


def result(strategy, layers):
    scores = {"rougeL": layers / 8, "bertscore_f1": layers / 10}
    return strategy_result(strategy, layers, scores, num_layers=4, step_ms=5 * layers)


@pytest.mark.slow
def test_update_pages_takes_the_reports_as_they_are_written(tmp_path):
    """On a copy of the page, with the reports of two comparisons."""
    for folder in ("docs", "benchmarks"):
        (tmp_path / folder).mkdir()
    for file in ("docs/demo.md", "benchmarks/update_pages.py", "benchmarks/markers.py"):
        shutil.copyfile(ROOT / file, tmp_path / file)
    made = replace(RUN, git=GitState("0123456789" * 4, dirty=True))
    for name, depths in (("demo_train", (4.0, 2.5)), ("demo_plain", (3.0, 1.2))):
        results = [result(strategy, layers) for strategy, layers in zip((FullDepth(), HSD()), depths, strict=True)]
        write_comparison(compare_results(results, made), results, tmp_path / "runs" / name)
    subprocess.run([sys.executable, "-m", "benchmarks.update_pages"], cwd=tmp_path, check=True)

    old, new = ((folder / "docs/demo.md").read_text(encoding="utf-8") for folder in (ROOT, tmp_path))
    before, demo, after = re.split(r"<!-- demo:(?:begin|end) -->", new)
    assert [before, after] == re.split(r"<!-- demo:(?:begin|end) -->", old)[::2]
    assert unpadded(demo).splitlines()[1:5] == [
        "| Strategy | Average depth | ROUGE-L, trained to skip | % of full depth | ROUGE-L, trained plainly | "
        "% of full depth | ms per decode step | Measured speed-up |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        "| `FullDepth()` | 4.0 | 0.500 [0.500, 0.500] | 100 | 0.375 [0.375, 0.375] | 100 | 20.0 | 1.00× |",
        f"| `{HSD()}` | 2.5 | 0.312 [0.312, 0.312] | 62 | 0.150 [0.150, 0.150] | 40 | 12.5 | 1.60× |",
    ]
    assert "![Quality against layers and against time](demo_pareto.png)" in demo
    assert "on 2031-01-02, commit 0123456789 with uncommitted changes, A CPU, 2 cores, torch 9.9." in demo
    assert (tmp_path / "docs/demo_pareto.png").read_bytes().startswith(b"\x89PNG")


def test_the_matrix_of_the_page_on_performance_has_a_line_for_each_way_to_decode(tmp_path):
    options = BenchOptions(new_tokens=3, repeats=1, removed_layers=True)
    made = replace(RUN, git=GitState("0123456789" * 4, dirty=True))
    model, cells = tiny_model(), [Cell([Batch(*prompts(1))]), Cell([Batch(*prompts(2))])]
    found = run_bench(model, cells, [HSD(1, 0, 3)], options=options, folder=tmp_path, run=made)
    part = unpadded(performance.matrix_part(found)).splitlines()
    assert [line.split(" | ")[:6] for line in part if line.startswith("| ")][2:] == [
        [f"| {batch}", "1", "5", "float64", f"`{name}`", depth]
        for batch in (1, 2)
        for name, depth in (("plain", "–"), ("FullDepth", "6.0"), ("HSD(num_skipped=1, min_exit=0, max_exit=3)", "4.5"))
    ]
    assert part[-1].startswith("Measured on 2031-01-02, commit 0123456789 with uncommitted changes, A CPU")


def test_every_part_of_the_page_on_performance_has_its_place():
    page = performance.PAGE.read_text(encoding="utf-8")
    for part in performance.PARTS:
        assert "nothing" in filled(page, part, "nothing")
