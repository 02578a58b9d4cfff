"""What both searches of `tune` do alike: replay on full depth's own texts, in the first process."""

from collections.abc import Callable
from typing import TypeVar

import torch
from rich.console import Console
from torch import Tensor

from hsdlab.data.sample import sample_batches
from hsdlab.decoding.forced import decode_steps
from hsdlab.errors import UserError
from hsdlab.progress import Steps
from hsdlab.records.strategy_result import StrategyResult
from hsdlab.runs.strategies import StrategyRuns

Found = TypeVar("Found")


def searched(runs: StrategyRuns, terminal: Console, trials: int, search: Callable[[Steps], Found]) -> Found:
    """Search in the first process, whose findings the others take over.

    Args:
        runs: Gives the Trainer.
        terminal: Where to say what is done.
        trials: How many settings are tried.
        search: Searches; counts the settings in the progress that it is given.

    Returns:
        What `search` found, in every process.
    """
    found = None
    if runs.trainer.is_global_zero:
        terminal.print(f"Searching: {trials} settings", highlight=False)
        with Steps("Searching", trials, "settings") as steps:
            found = search(steps)
    return runs.trainer.strategy.broadcast(found)


def own_texts(runs: StrategyRuns, full: StrategyResult, examples: int) -> list[dict[str, Tensor]]:
    """Make batches of prompts with the texts that full depth decoded.

    Args:
        runs: Give the module and the data.
        full: Full depth's result on the validation split.
        examples: How many texts at most.

    Returns:
        Batches as `ForcedTexts` takes them.

    Raises:
        UserError: None of the texts has a decode step.
    """
    runs.datamodule.connect_to(runs.module)
    texts = {record.id: record.token_ids for record in full.examples}
    batches = [batch["pairs"] for batch in sample_batches(runs.datamodule, "validation", examples, texts)]
    if not any(decode_steps(batch["target_mask"]).any() for batch in batches):
        raise UserError(
            "None of full depth's texts that are to be scored has two tokens or more: there is no decode step to skip "
            "layers in."
        )
    return batches


def search_seed() -> int:
    """Derive the seed of the proposals from that of the run.

    Returns:
        A whole number below 2^32, as Optuna takes it.
    """
    return torch.initial_seed() % 2**32
