"""The commands by name: which there are, what each does, and which one was meant.

Nothing heavy is imported here: `hsdlab --help` and a misspelt command answer at once.
"""

import difflib
from collections.abc import Iterable, Sequence

from hsdlab.program import hyphenated

EVALUATE = {
    "test": "decode the test split under one strategy; its scores and average depth",
    "validate": "the same on the validation split",
    "predict": "decode a split under one strategy; the texts without scores",
    "compare": "decode the test split under several strategies; a table and a picture",
    "bench": "time several strategies in alternation",
    "inspect": "measure how early each layer predicts the final token; no training needed",
    "calibrate": "choose a threshold with a guarantee on the loss of quality",
    "tune": "search the fastest settings at a given quality, or the fastest draft",
    "count_tokens": "count the tokens of the training texts: the vocabulary of Verified's drafts",
    "report": "draw the tables and pictures of finished runs again, without a model",
}
"""The commands of `evaluate.py`, in the order of the help."""

TRAIN = {
    "fit": "fine-tune a model: whole or LoRA, plain or trained to skip layers",
    "fit_exit_classifier": "train CALM's exit classifier on a model that stays as it is",
    "fit_exit_router": "train LearnedExit's router on a model that stays as it is",
    "validate": "compute the validation loss",
}
"""The commands of `train.py`, in the order of the help."""


CONFIG = ("-c", "--config")
"""The option that may stand before a command with a value of its own."""
SWITCHES = ("lossless", "removed_layers")
"""Options that are true without a value: `--lossless` is `--lossless=true`."""
MORE = "For the options and their meaning add --help"
"""What follows the sentence that refuses an option."""


def command_position(words: Sequence[str]) -> int | None:
    """Find the command in a command line.

    Args:
        words: The command line after the program's name. Options may stand before the command; of these `CONFIG` takes
            a value of its own.

    Returns:
        Index of the first word that is no option; None where there is none.
    """
    values = 0
    for index, word in enumerate(words):
        if values:
            values -= 1
        elif word in CONFIG:
            values = 1
        elif not word.startswith("-"):
            return index
    return None


def unknown_command(word: str, known: Iterable[str], program: str) -> str:
    """Compose the sentence for an unknown command.

    Args:
        word: What was given.
        known: The commands that exist, as they are typed.
        program: Whose commands they are, such as "hsdlab" or "python evaluate.py".

    Returns:
        The sentence, with the nearest command if one is near, and all commands.
    """
    names = list(known)
    near = difflib.get_close_matches(hyphenated(word), names, n=1, cutoff=0.5)
    meant = f" Did you mean {near[0]!r}?" if near else ""
    return f"unknown command {word!r}.{meant} The commands are {', '.join(names)}: see `{program} --help`."
