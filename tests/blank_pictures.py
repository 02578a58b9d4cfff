"""Pictures without content: to draw them takes a third of a tiny run, and tests/reporting looks at real ones."""

import io

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from hsdlab.reporting import figures

_file = io.BytesIO()
FigureCanvasAgg(Figure((0.1, 0.1))).print_png(_file)
PNG = _file.getvalue()


class BlankCanvas(FigureCanvasAgg):
    """Writes the same white picture for each figure."""

    def print_png(self, file, **options):
        file.write(PNG)


def draw_none(patch: pytest.MonkeyPatch) -> None:
    """Write white pictures in place of the figures."""
    patch.setattr(figures, "FigureCanvasAgg", BlankCanvas)


def draw_again(patch: pytest.MonkeyPatch) -> None:
    """Draw the figures, where the other tests do not."""
    patch.setattr(figures, "FigureCanvasAgg", FigureCanvasAgg)
