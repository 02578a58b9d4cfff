"""The texts as a picture, each token on the colour of its depth.

TensorBoard's text plugin renders Markdown and strips every style, so that colours can only come as an image.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from textwrap import wrap
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.patches import Rectangle

from hsdlab.records.example import ExampleRecord
from hsdlab.reporting.depth import DEPTH_COLOURS, token_depths
from hsdlab.reporting.pareto import FAINT, INK

FONT = "DejaVu Sans Mono"  # comes with matplotlib
DOTS_PER_INCH = 150
CELL_DOTS = (12, 33)  # a character's advance and a line; the renderer rounds advances to whole dots
POINTS = 72 * CELL_DOTS[0] / DOTS_PER_INCH / 0.60205  # at which the font's advance, 0.60205 em, is that
CELL_INCHES = tuple(dots / DOTS_PER_INCH for dots in CELL_DOTS)
COLUMNS = 100
MARGIN_INCHES = 0.3
BAR_INCHES = 0.75
LINE_BREAK, TAB, UNKNOWN = "↵", "⇥", "\N{REPLACEMENT CHARACTER}"

Colour = tuple[float, float, float, float]
"""Red, green, blue, opacity, from 0 to 1."""


@dataclass(frozen=True)
class TextBlock:
    """A text to draw.

    Attributes:
        title: In bold, cut after two lines.
        plain: Under the title, without colours, cut after four lines. May be empty.
        tokens: Texts of the tokens with the number of layers that made each. None for a heading without tokens; an
            empty list is drawn as "not recorded".
    """

    title: str
    plain: str = ""
    tokens: Sequence[tuple[str, float]] | None = None


@dataclass(frozen=True)
class Piece:
    """The part of a token that is on one line.

    Attributes:
        line: From 0.
        column: Of its first character, from 0.
        text: With visible signs for line breaks and tabs.
        depth: Number of layers that made the token.
    """

    line: int
    column: int
    text: str
    depth: float


def example_block(title: str, example: ExampleRecord, num_layers: int, plain: str = "") -> TextBlock:
    """Give the text of an example as it is drawn.

    Args:
        title: Comes before the average depth.
        example: Its tokens and layers are read.
        num_layers: L of the model.
        plain: Under the title, without colours.

    Returns:
        The text with the number of layers that made each token.
    """
    depth = example.average_layers
    average = "" if depth is None else f": {depth:.1f} layers"
    return TextBlock(f"{title}{average}", plain, token_depths(example, num_layers))


def coloured_text_figure(blocks: Sequence[TextBlock], num_layers: int) -> Figure:
    """Draw texts whose tokens stand on the colour of their depth, with the scale below.

    Line breaks inside a token are shown as ↵, tabs as ⇥. What the font does not have, and the bytes of a
    character that the tokenizer split, are shown as the replacement character.

    Args:
        blocks: The texts, at least one.
        num_layers: L of the model, the dark end of the scale.

    Returns:
        A figure on the Agg canvas, apart from pyplot's global state.
    """
    laid_out = [_laid_out(block) for block in blocks]
    heights = [
        len(title) + len(plain) + (pieces[-1].line + 1 if pieces else 0) + 0.9 for title, plain, pieces in laid_out
    ]
    width = COLUMNS * CELL_INCHES[0] + 2 * MARGIN_INCHES
    body = sum(heights) * CELL_INCHES[1]
    height = body + BAR_INCHES + MARGIN_INCHES
    figure = Figure(figsize=(width, height), dpi=DOTS_PER_INCH)
    FigureCanvasAgg(figure)
    left, wide = MARGIN_INCHES / width, 1 - 2 * MARGIN_INCHES / width
    axes = figure.add_axes((left, BAR_INCHES / height, wide, body / height))
    axes.set_axis_off()
    axes.set_xlim(0, COLUMNS)
    axes.set_ylim(sum(heights), 0)
    colours = matplotlib.colormaps[DEPTH_COLOURS]
    top = 0.0
    for (title, plain, pieces), lines in zip(laid_out, heights, strict=True):
        for index, line in enumerate(title):
            _write(axes, 0, top + index, line, color=INK, weight="bold")
        for index, line in enumerate(plain, start=len(title)):
            _write(axes, 0, top + index, line, color="#6a6a6a")
        _draw_tokens(axes, top + len(title) + len(plain), pieces, lambda depth: colours(depth / num_layers))
        top += lines
    _draw_scale(figure, ScalarMappable(Normalize(0, num_layers), colours), left, height)
    return figure


def laid_out_tokens(tokens: Sequence[tuple[str, float]], columns: int = COLUMNS) -> Iterator[Piece]:
    """Lay tokens out in lines. A token that does not fit starts a line; it is cut only if no line can hold it.

    A line break in a token ends the line. Several breaks in a row share a line.

    Args:
        tokens: Texts of the tokens with the number of layers that made each.
        columns: Characters in a line.

    Yields:
        The pieces in order, one or more for each token.
    """
    line = column = 0
    ended = False
    for token, depth in tokens:
        for part in re.findall(r"[^\n]*\n+|[^\n]+", token.replace("\r\n", "\n")):
            text = shown(part)
            if column and (column + len(text) > columns or (ended and part.strip("\n"))):
                line, column = line + 1, 0
            ended = part.endswith("\n")
            while len(text) > columns:
                yield Piece(line, 0, text[:columns], depth)
                line, text = line + 1, text[columns:]
            yield Piece(line, column, text, depth)
            column += len(text)


def shown(text: str) -> str:
    """Replace the characters that the font cannot draw by visible signs.

    Args:
        text: Of a token, or any other.

    Returns:
        The text in Unicode's form NFC, with ↵ for a line break, ⇥ for a tab and � for what the font lacks.
    """
    return "".join(_shown(character) for character in unicodedata.normalize("NFC", text))


@cache
def _shown(character: str) -> str:
    if character in "\n\t":
        return LINE_BREAK if character == "\n" else TAB
    font = get_font(findfont(FontProperties(family=FONT)))
    return character if character.isprintable() and font.get_char_index(ord(character)) else UNKNOWN


def _laid_out(block: TextBlock) -> tuple[list[str], list[str], list[Piece]]:
    """Return the lines of the title, those under it, and the pieces of the tokens."""
    plain = _wrapped(block.plain, 4)
    if block.tokens is not None and not block.tokens:
        plain.append("not recorded")
    return _wrapped(block.title, 2), plain, list(laid_out_tokens(block.tokens or ()))


def _wrapped(text: str, most: int) -> list[str]:
    """Return the text in lines of whole words; what goes beyond `most` lines is cut with a sign."""
    return wrap(shown(" ".join(text.split())), COLUMNS, max_lines=most, placeholder=" […]")


def _draw_tokens(axes: Axes, top: float, pieces: Sequence[Piece], colour_of: Callable[[float], Colour]) -> None:
    for piece in pieces:
        colour = colour_of(piece.depth)
        corner = (piece.column, top + piece.line + 0.04)
        axes.add_patch(Rectangle(corner, len(piece.text), 0.92, facecolor=colour, edgecolor="white", linewidth=0.8))
        _write(axes, piece.column, top + piece.line, piece.text, color=_ink_on(colour))


def _draw_scale(figure: Figure, scale: ScalarMappable, left: float, height: float) -> None:
    """Draw the colour scale and what it means at the lower edge; `height` is the figure's, in inches."""
    bar = figure.colorbar(
        scale, cax=figure.add_axes((left, 0.4 / height, 0.35, 0.13 / height)), orientation="horizontal"
    )
    bar.outline.set_color(FAINT)
    bar.ax.tick_params(colors=INK, labelsize=8)
    meaning = "Layers that made the token.\nThe first one comes from the prefill, at full depth."
    figure.text(left + 0.38, 0.33 / height, meaning, color=INK, fontsize=8.5, va="center", linespacing=1.4)


def _ink_on(colour: Colour) -> str:
    """Return the ink with more contrast to a background (WCAG 2: they are even at relative luminance 0.179)."""
    red, green, blue = (channel**2.2 for channel in colour[:3])
    return "black" if 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.179 else "white"


def _write(axes: Axes, column: float, line: float, text: str, **style: Any) -> None:
    axes.text(column, line + 0.5, text, family=FONT, fontsize=POINTS, va="center_baseline", parse_math=False, **style)
