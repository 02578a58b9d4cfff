"""Markdown tables, read back by a Markdown parser that we did not write."""

import itertools

import pytest
from markdown_it import MarkdownIt

from hsdlab.reporting.markdown import markdown_table


def read(table):
    """The cells of each row as text, and the alignment of each cell, as GitHub's rules have it."""
    cells, aligns = [], []
    tokens = MarkdownIt("gfm-like", {"linkify": False}).parse(table)
    for token, content in itertools.pairwise(tokens):
        if token.type == "tr_open":
            cells.append([])
            aligns.append([])
        if token.type in ("th_open", "td_open"):
            cells[-1].append(content.content)
            aligns[-1].append(token.attrs.get("style"))
    return cells, aligns


def test_the_first_column_is_text_and_the_others_are_numbers():
    cells, aligns = read(markdown_table(["Strategy", "Layers", "ROUGE-L"], [["`HSD()`", "9.0", "0.5000"]]))
    assert cells == [["Strategy", "Layers", "ROUGE-L"], ["`HSD()`", "9.0", "0.5000"]]
    assert aligns == [["text-align:left", "text-align:right", "text-align:right"]] * 2


def test_an_alignment_for_each_column():
    _, aligns = read(markdown_table(["a", "b"], [["1", "2"]], align=["right", "center"]))
    assert aligns[1] == ["text-align:right", "text-align:center"]


@pytest.mark.parametrize("text", ["a|b", r"a\|b", "`a|b`"])
def test_a_bar_stays_in_its_cell(text):
    cells, _ = read(markdown_table(["x", "y"], [[text, "1"]]))
    assert cells[1] == [text.replace("\\", ""), "1"]


def test_a_line_break_stays_in_its_cell():
    cells, _ = read(markdown_table(["x", "y"], [["two\nlines", "more\r\nlines"]]))
    assert cells[1] == ["two<br>lines", "more<br>lines"]


def test_without_rows_there_is_a_header():
    assert read(markdown_table(["x", "y"], []))[0] == [["x", "y"]]


@pytest.mark.parametrize(("rows", "align"), [([["1"]], None), ([["1", "2", "3"]], None), ([["1", "2"]], ["left"])])
def test_a_row_that_does_not_fit_the_header_is_refused(rows, align):
    with pytest.raises(ValueError, match=r"2 columns \['x', 'y'\], but got"):
        markdown_table(["x", "y"], rows, align)
