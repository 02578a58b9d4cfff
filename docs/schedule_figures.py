"""The pictures of the strategy pages, drawn at build time from the strategies themselves.

A schedule is drawn from ``layers_at``. A confidence strategy has none: its picture is a decode of a tiny model with
random weights, which shows the form of the exits and says nothing about quality.
"""

from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sphinx.application import Sphinx

from hsdlab import (
    CALM,
    HSD,
    PABEE,
    Compose,
    DeeBERT,
    FullDepth,
    LearnedExit,
    OracleExit,
    SkipDecode,
    SkipStrategy,
    StaticDepth,
    SubLayerStrategy,
    Verified,
    generate,
)
from hsdlab.decoding.exit_router import ExitRouter
from hsdlab.decoding.sub_layers import apart, step_mask
from hsdlab.strategies.budget import DECAYS, budget
from hsdlab.strategies.confidence import depth_threshold, time_threshold
from hsdlab.testing import prompts, tiny_model

FOLDER = Path(__file__).parent / "_generated"
TITLE_COLUMNS = 56
LAYERS, STEPS = 30, 50  # SmolLM2-135M, and the maximum length of E2E
TINY_LAYERS = 12
INK, EXECUTED, SKIPPED = "#3a3a3a", "#2a6f97", "#e8eef2"

ROUTER = str(FOLDER / "exit_router.safetensors")

STRATEGIES: dict[str, Sequence[SkipStrategy]] = {
    "full_depth": [FullDepth()],
    "hsd": [HSD(1, 0, 15), HSD(2, 0, 15), HSD(2, 0, 8)],
    "skipdecode": [SkipDecode(10, 20), SkipDecode(10, 24), SkipDecode(8, 17, warmup=3)],
    "static_depth": [StaticDepth(15), StaticDepth(15, "bottom"), StaticDepth(15, "top")],
    "sub_layers": [SubLayerStrategy(), SubLayerStrategy([20, 21, 22, 23], [22, 23, 24, 25])],
    "calm": [CALM(0.9), CALM(0.9, probe_layers=3), CALM(schedule="depth", slope=0.02)],
    "deebert": [DeeBERT(0.9), DeeBERT(0.95)],
    "pabee": [PABEE(1), PABEE(2)],
    "learned_exit": [LearnedExit(ROUTER, 0.6), LearnedExit(ROUTER, 0.5)],
    "compose": [HSD(1, 0, 6), Compose(HSD(1, 0, 6), CALM(0.9))],
    "verified": [HSD(3, 0, 4), Verified(HSD(3, 0, 4))],
    "oracle_exit": [OracleExit()],
}
"""The settings in the picture of each page of docs/strategies."""


def executed(strategy: SkipStrategy, num_layers: int, max_steps: int) -> NDArray[np.float64]:
    """Return how much of each layer runs in each decode step, [steps, layers]: by the schedule, else in a decode."""
    schedule = None if hasattr(strategy, "should_exit") else strategy.scheduled_layers(num_layers, max_steps)
    if schedule is not None:
        masks = [apart(step_mask(layers, num_layers), dims=1) for layers in schedule]
        return torch.stack(masks).double().mean(dim=2).numpy()
    input_ids, attention_mask = prompts(1)
    model = tiny_model(num_layers=num_layers)
    if isinstance(strategy, LearnedExit):
        _random_router(num_layers, model.config.hidden_size)
    out = generate(
        model, input_ids=input_ids, attention_mask=attention_mask, strategy=strategy, max_new_tokens=max_steps
    )
    return out.trace.executed[:, 0].double().numpy()


def _random_router(num_layers: int, hidden_size: int) -> None:
    """Write the router of the picture, which has random weights as the tiny model has."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        router = ExitRouter(hidden_size, range(num_layers - 1))
        torch.nn.init.normal_(router.read.weight, std=0.2)
    FOLDER.mkdir(exist_ok=True)
    router.save(ROUTER)


def strategy_figure(strategies: Sequence[SkipStrategy]) -> Figure:
    """Draw a panel for each setting: decode steps to the right, layers upwards, executed ones dark."""
    scheduled = not any(hasattr(each, "should_exit") or each.is_oracle for each in strategies)
    num_layers = LAYERS if scheduled else TINY_LAYERS
    figure, panels = _panels(len(strategies))
    for axes, strategy in zip(panels, strategies, strict=True):
        cells = executed(strategy, num_layers, STEPS)
        extent = (-0.5, len(cells) - 0.5, -0.5, num_layers - 0.5)
        axes.imshow(_coloured(cells.T), origin="lower", aspect="auto", interpolation="nearest", extent=extent)
        title = fill(repr(strategy), TITLE_COLUMNS)
        axes.set_title(f"{title}\n{cells.sum(axis=1).mean():.1f} of {num_layers} layers", fontsize=8, color=INK)
        axes.set_xlabel("Decode step t", color=INK, fontsize=9)
    panels[0].set_ylabel("Layer i", color=INK, fontsize=9)
    return figure


def decay_figure() -> Figure:
    """Draw the layer budget l(t) from 18 to 0 under each decay."""
    figure, (axes,) = _panels(1)
    for decay in DECAYS:
        axes.plot([budget(step, STEPS, 0, 18, decay) for step in range(STEPS - 1)], label=decay, drawstyle="steps-post")
    return _labelled(figure, axes, "Decode step t", "Layer budget l(t)")


def threshold_figure() -> Figure:
    """Draw CALM's thresholds that fall over the steps and over the layers."""
    figure, (over_steps, over_layers) = _panels(2)
    for threshold in (0.9, 0.5):
        line = [time_threshold(threshold, step, STEPS) for step in range(STEPS - 1)]
        over_steps.plot(line, label=f'schedule="time", threshold={threshold}')
    for slope in (0.02, 0.005):
        line = [depth_threshold(slope, layer) for layer in range(LAYERS)]
        over_layers.plot(line, label=f'schedule="depth", slope={slope}')
    for axes in (over_steps, over_layers):
        axes.set_ylim(0, 1.05)
    _labelled(figure, over_steps, "Decode step t", "Threshold")
    return _labelled(figure, over_layers, "Layer i", "")


def _panels(number: int) -> tuple[Figure, Sequence[Axes]]:
    figure = Figure(figsize=(3.3 * number + 0.6, 2.9), layout="constrained")
    FigureCanvasSVG(figure)
    panels = figure.subplots(1, number, squeeze=False)[0]
    for axes in panels:
        axes.tick_params(colors=INK, labelsize=8)
        axes.spines[:].set_color("#b0b0b0")
    return figure, panels


def _coloured(cells: NDArray[np.float64]) -> NDArray[np.uint8]:
    skipped, executed = ([int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in (SKIPPED, EXECUTED))
    return (np.array(skipped) * (1 - cells[..., None]) + np.array(executed) * cells[..., None]).astype(np.uint8)


def _labelled(figure: Figure, axes: Axes, x: str, y: str) -> Figure:
    axes.set_xlabel(x, color=INK, fontsize=9)
    axes.set_ylabel(y, color=INK, fontsize=9)
    axes.legend(fontsize=7.5, frameon=False)
    return figure


def draw(app: Sphinx) -> None:
    """Draw all pictures into docs/_generated."""
    FOLDER.mkdir(exist_ok=True)
    figures = {name: strategy_figure(strategies) for name, strategies in STRATEGIES.items()}
    figures |= {"decays": decay_figure(), "thresholds": threshold_figure()}
    for name, figure in figures.items():
        figure.savefig(FOLDER / f"{name}.svg", metadata={"Date": None}, facecolor="white")


def setup(app: Sphinx) -> dict[str, Any]:
    """Draw before Sphinx reads the pages."""
    app.connect("builder-inited", draw)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
