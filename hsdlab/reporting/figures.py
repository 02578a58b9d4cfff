"""Writing pictures."""

from io import BytesIO
from pathlib import Path

from matplotlib.figure import Figure

from hsdlab.records.files import replace_file


def replace_figure(path: Path, figure: Figure, dots_per_inch: int = 200) -> None:
    """Write a picture as PNG, whole or not at all.

    Args:
        path: The .png file. An existing file is replaced once the new one is complete.
        figure: The picture.
        dots_per_inch: Resolution; with the figure's size in inches it gives the pixels.
    """
    picture = BytesIO()
    figure.savefig(picture, format="png", dpi=dots_per_inch)
    replace_file(path, picture.getvalue())
