"""Figures drawn: once, as PNG, for a file and for TensorBoard alike."""

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from hsdlab.records.files import replace_file

DOTS_PER_INCH = 200


@dataclass(frozen=True)
class Picture:
    """A figure that was drawn.

    Attributes:
        png: The content of a PNG file.
        width: In pixels.
        height: In pixels.
    """

    png: bytes
    width: int
    height: int


def draw(figure: Figure, dots_per_inch: int = DOTS_PER_INCH) -> Picture:
    """Draw a figure. `Figure.savefig` would draw it twice.

    Args:
        figure: Its resolution is changed.
        dots_per_inch: Resolution; with the figure's size in inches it gives the pixels.

    Returns:
        The picture.
    """
    figure.set_dpi(dots_per_inch)
    canvas, file = FigureCanvasAgg(figure), BytesIO()
    canvas.print_png(file)
    width, height = canvas.get_width_height()
    return Picture(file.getvalue(), width, height)


def settle_layout(figure: Figure) -> None:
    """Compute the layout for good: what is added to the figure later moves nothing.

    Args:
        figure: Changed in place.
    """
    figure.set_dpi(DOTS_PER_INCH)
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)
        figure.set_layout_engine("none")


def replace_figure(path: Path, figure: Figure, dots_per_inch: int = DOTS_PER_INCH) -> Picture:
    """Draw a figure and write it as PNG, whole or not at all.

    Args:
        path: The .png file. An existing file is replaced once the new one is complete.
        figure: Its resolution is changed.
        dots_per_inch: Resolution; with the figure's size in inches it gives the pixels.

    Returns:
        The picture, for TensorBoard.
    """
    picture = draw(figure, dots_per_inch)
    replace_file(path, picture.png)
    return picture
