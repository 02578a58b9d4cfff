"""`hsdlab models check`: what hsdlab can do with a model, tried on a small random model of its config."""

import sys

from rich.box import SIMPLE_HEAD
from rich.table import Table

from hsdlab.cli.exits import run_or_exit
from hsdlab.models.load import model_config
from hsdlab.reporting.tables import console
from hsdlab.testing.model_check import EXACT, REFUSED, ModelReport, check_model


def check(name: str) -> None:
    """Print what was tried on a model, what came of it, and one sentence at the end.

    Args:
        name: A model's folder, in which a config.json is enough, its id on the hub, or another name of `load_model`.

    Raises:
        SystemExit: With 1 if hsdlab does not decode the model exactly; see `hsdlab.cli.exits.run_or_exit`.
    """
    run_or_exit(lambda _: _print(name), [])


def _print(name: str) -> None:
    report = check_model(model_config(name))
    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("Tried", no_wrap=True)
    table.add_column("Has to equal", no_wrap=True)
    table.add_column("Result", no_wrap=True)
    table.add_column("Why not", overflow="fold")
    for trial in report.trials:
        table.add_row(trial.what, trial.law, trial.result, trial.reason)
    terminal = console()
    terminal.print(f"{report.model_type}, {report.model_class or 'no model'}. {'; '.join(report.mechanisms)}")
    terminal.print(table)
    terminal.print(f"{name}: {verdict(report)}", highlight=False, markup=False, soft_wrap=True)
    if report.result != EXACT:
        sys.exit(1)


def verdict(report: ModelReport) -> str:
    """Say in one sentence what a report found.

    Args:
        report: Of a model.

    Returns:
        The sentence.
    """
    if report.result == REFUSED:
        return f"hsdlab does not decode it. {report.reason}"
    if report.result != EXACT:
        return f"hsdlab does not decode it exactly: {report.reason}"
    found = (
        f"the law suite proves the family {report.model_type}."
        if report.proven
        else f"the family {report.model_type} is not in the law suite, so hsdlab probes a model when it first meets it."
    )
    idle = f" Nothing was learnt of layers {', '.join(map(str, report.idle))}, which hardly change the logits."
    return f"hsdlab decodes it exactly; {found}{idle if report.idle else ''}"
