"""Text on the colour of its depth: where tokens stand, what is drawn for odd characters, which colours."""

import warnings

import matplotlib
import numpy as np
from matplotlib.colors import to_hex

from hsdlab.reporting.coloured_text import (
    CELL_DOTS,
    COLUMNS,
    Piece,
    TextBlock,
    coloured_text_figure,
    laid_out_tokens,
    shown,
)


def laid_out(*tokens, columns=10):
    return [(piece.line, piece.column, piece.text) for piece in laid_out_tokens([(t, 1) for t in tokens], columns)]


def test_tokens_go_to_the_next_line_whole():
    assert laid_out("The", " cat", " sat") == [(0, 0, "The"), (0, 3, " cat"), (1, 0, " sat")]
    assert laid_out("exactly", "ten") == [(0, 0, "exactly"), (0, 7, "ten")]


def test_only_a_token_that_no_line_can_hold_is_cut():
    assert laid_out("a", "x" * 25, "b") == [
        (0, 0, "a"),
        (1, 0, "x" * 10),
        (2, 0, "x" * 10),
        (3, 0, "xxxxx"),
        (3, 5, "b"),
    ]


def test_line_breaks_end_a_line_and_share_it():
    assert laid_out("a", "\n", "\n\n", "b") == [(0, 0, "a"), (0, 1, "↵"), (0, 2, "↵↵"), (1, 0, "b")]
    assert laid_out("a\r\nb\n", "c") == [(0, 0, "a↵"), (1, 0, "b↵"), (2, 0, "c")]
    assert laid_out("", " ") == [(0, 0, " ")]


def test_a_piece_keeps_the_depth_of_its_token():
    assert list(laid_out_tokens([("a\nb", 3), ("c", 5)])) == [
        Piece(0, 0, "a↵", 3),
        Piece(1, 0, "b", 3),
        Piece(1, 1, "c", 5),
    ]


def test_what_the_font_cannot_draw_is_replaced():
    assert shown("a\tb") == "a⇥b"
    assert shown("漢🙂\x07") == "���"
    assert shown("e\u0301 ß λ $x$") == "é ß λ $x$"


def test_odd_texts_are_drawn_without_a_warning():
    """No missing glyph, no formula: each would warn or raise."""
    blocks = [
        TextBlock("$\\frac$ 漢", "a long source " * 100, [("$\\nope$", 1), ("漢\t", 2), ("x" * 300, 3), ("", 4)]),
        TextBlock("heading"),
        TextBlock("none", tokens=[]),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = coloured_text_figure(blocks, num_layers=4)
        figure.canvas.draw()
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts[0] == "$\\frac$ �"
    assert texts[4].endswith(" […]")
    assert texts[-3:] == ["heading", "none", "not recorded"]


def test_colours_are_those_of_the_depth_and_the_ink_stands_out():
    figure = coloured_text_figure([TextBlock("t", tokens=[("full", 4), (" half", 2), (" none", 0)])], num_layers=4)
    axes = figure.axes[0]
    colours = matplotlib.colormaps["Blues"]
    assert [to_hex(patch.get_facecolor()) for patch in axes.patches] == [to_hex(colours(x)) for x in (1.0, 0.5, 0.0)]
    assert [text.get_color() for text in axes.texts[1:]] == ["white", "black", "black"]
    assert [patch.get_xy()[0] for patch in axes.patches] == [0, 4, 9]


def test_letters_stand_in_their_cells():
    """The advance of the font is the width of a cell: a full line ends where its box ends."""
    figure = coloured_text_figure([TextBlock("t", tokens=[("x" * COLUMNS, 0)])], num_layers=4)
    figure.canvas.draw()
    box, text = figure.axes[0].patches[0].get_window_extent(), figure.axes[0].texts[1].get_window_extent()
    assert box.width == COLUMNS * CELL_DOTS[0]
    assert 0 <= box.width - text.width < CELL_DOTS[0] / 2
    assert np.isclose(box.x0, text.x0, atol=2)
