"""The axes of calibration curves: how often a prediction is right, over the confidence in it."""

from matplotlib.axes import Axes

from hsdlab.reporting.pareto import FAINT, INK


def prepare_calibration(axes: Axes, confidence: str) -> None:
    """Label the axes of calibration curves, and draw the diagonal of a calibrated confidence.

    Args:
        axes: Changed in place.
        confidence: Whose confidence is on the horizontal axis.
    """
    axes.plot([0, 1], [0, 1], color=FAINT, linestyle="--", linewidth=1, label="Calibrated")
    axes.set_xlabel(confidence, color=INK)
    axes.set_ylabel("How often the prediction is the last layer's", color=INK)
    plain_axes(axes)


def plain_axes(axes: Axes) -> None:
    """Draw a faint grid, and no frame above and on the right.

    Args:
        axes: Changed in place.
    """
    axes.grid(color="#ececec", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK)
