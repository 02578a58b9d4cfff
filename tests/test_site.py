"""The documentation site: its pictures are the strategies', its checks find what is broken, and it builds."""

import inspect
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import hsdlab
import hsdlab.strategies
from hsdlab import CALM, HSD, Compose, SkipStrategy

pytest.importorskip("sphinx", reason="the extra `docs` is not installed")
from docs import schedule_figures
from docs.check_links import broken_links
from docs.copied_notebooks import NOTEBOOKS
from docs.docstrings import keep_colons
from docs.mathml import mathml

ROOT = Path(__file__).parents[1]
ROOMS = [path.parent.name for path in sorted((ROOT / "hsdlab").glob("*/__init__.py"))]
NOT_PUBLIC = {"cli", "reporting", "tuning"}  # what a command is made of; hsdlab.runs is the way in


def test_every_strategy_is_in_a_picture():
    shown = {type(each) for strategies in schedule_figures.STRATEGIES.values() for each in strategies}
    found = {
        value
        for value in vars(hsdlab.strategies).values()
        if inspect.isclass(value) and issubclass(value, SkipStrategy) and not inspect.isabstract(value)
    }
    assert shown == found


def test_a_picture_shows_the_layers_of_each_step():
    cells = schedule_figures.executed(HSD(num_skipped=2, min_exit=0, max_exit=2), num_layers=6, max_steps=4)
    assert cells.tolist() == [
        [True, False, False, True, True, True],
        [True, False, False, True, True, True],  # round(2 - 2 · 1/4) = 2
        [True, False, False, True, False, True],
    ]
    (panel,) = schedule_figures.strategy_figure([HSD(2, 0, 2)]).axes
    drawn = panel.images[0].get_array()  # layers, steps, colour
    assert drawn.shape == (30, 49, 3)
    dark = np.all(np.asarray(drawn) == (0x2A, 0x6F, 0x97), axis=-1)
    assert dark[:, 0].nonzero()[0].tolist() == [*range(0, 28, 3), 28, 29]


def test_a_confidence_strategy_is_drawn_from_a_decode():
    cells = schedule_figures.executed(CALM(0.9), num_layers=4, max_steps=8)
    assert cells.shape == (7, 4)
    assert (cells[:, 1:] <= cells[:, :-1]).all()  # no layer above an exit
    assert cells.sum() < 28
    schedule, composed = (
        schedule_figures.executed(each, num_layers=6, max_steps=8)
        for each in (HSD(1, 0, 3), Compose(HSD(1, 0, 3), CALM(0.9)))
    )
    assert (composed <= schedule).all()
    assert composed.sum() < schedule.sum()


def test_the_api_reference_has_every_public_room():
    pages = "".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs/api").glob("*.md"))
    for room in ["hsdlab", *(f"hsdlab.{room}" for room in ROOMS if room not in NOT_PUBLIC)]:
        assert f".. automodule:: {room}" in pages
    listed = (ROOT / "docs/api/index.md").read_text(encoding="utf-8").split()
    assert {page.stem for page in (ROOT / "docs/api").glob("*.md")} - {"index"} <= set(listed)


def test_every_notebook_is_a_page():
    text = (ROOT / "docs/notebooks.md").read_text(encoding="utf-8")
    for path in NOTEBOOKS.glob("*.ipynb"):
        assert f"\nnotebooks/{path.stem}\n" in text


def test_broken_links_are_found(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.html").write_text(
        '<h1 id="here">A</h1><a href="#here">1</a><a href="#gone">2</a><a href="sub/b.html#there">3</a>'
        '<a href="sub/c.html">4</a><img src="d.png"><a href="https://example.org/x">5</a><a href="mailto:x@y.z">6</a>'
    )
    (tmp_path / "sub/b.html").write_text(
        '<span id="there"></span><a href="../a.html#here">1</a><a href="../a.html#no">2</a>'
    )
    assert broken_links(tmp_path) == [
        "a.html: #gone (no such anchor)",
        "a.html: sub/c.html (no such file)",
        "a.html: d.png (no such file)",
        "sub/b.html: ../a.html#no (no such anchor)",
    ]


def test_a_site_without_pages_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected the built site, got no page"):
        broken_links(tmp_path)


def test_braces_keep_the_size_of_the_text_unless_they_enclose():
    assert mathml(r"\{ i \}").count('<mo stretchy="false">') == 2
    assert 'stretchy="false"' not in mathml(r"\left\{ i \right\}")


@pytest.mark.parametrize(("what", "expected"), [("attribute", ["", "a: b"]), ("class", ["a: b"])])
def test_a_colon_in_an_attributes_docstring_is_no_type(what, expected):
    lines = ["a: b"]
    keep_colons(None, what, "name", None, None, lines)
    assert lines == expected


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_no_link_is_broken(tmp_path):
    site = tmp_path / "html"
    command = [sys.executable, "-m", "sphinx", "-b", "html", "-W", "--keep-going", "-q", "docs", str(site)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert broken_links(site) == []
    start = (site / "index.html").read_text(encoding="utf-8")
    assert "Ten lines of Python" in start
    assert "https://cdn" not in start  # the pages need no other server
    assert 'id="hsdlab.HSD.layers_at"' in (site / "api/hsdlab.html").read_text(encoding="utf-8")
