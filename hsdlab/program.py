"""How this program was started, so that a command in a message can be typed as it is printed."""

import shlex
import sys
from pathlib import Path

EVALUATE_SCRIPT = "evaluate.py"
TRAIN_SCRIPT = "train.py"
VALIDATE_LOSS = "validate-loss"
"""What `hsdlab` calls `train.py validate`, since `hsdlab validate` is the command of `evaluate.py`.

`validate` and `test` of `evaluate.py` decode alike and differ only in the split, so both keep their names. What
`train.py validate` computes is a loss, and the name says so.
"""


def hyphenated(command: str) -> str:
    """Convert the name of a command to the form in which it is typed.

    Args:
        command: As the scripts name it, such as "fit_exit_classifier".

    Returns:
        With hyphens, "fit-exit-classifier".
    """
    return command.replace("_", "-")


def of_train(command: str) -> str:
    """Look up what `hsdlab` calls a command of `train.py`.

    Args:
        command: As the script names it, such as "validate" or "fit_exit_classifier".

    Returns:
        "validate-loss" for "validate", else the name with hyphens.
    """
    return VALIDATE_LOSS if command == "validate" else hyphenated(command)


def typed(command: str, script: str = EVALUATE_SCRIPT) -> str:
    """Write a command as it has to be typed where this process was started.

    Args:
        command: As the script names it, such as "test" or "fit_exit_classifier".
        script: The script that has it: "evaluate.py" or "train.py".

    Returns:
        "python evaluate.py test" where one of the two scripts was started, else "hsdlab test".
    """
    started = Path(sys.argv[0])
    if started.name in (EVALUATE_SCRIPT, TRAIN_SCRIPT):
        return f"python {shlex.quote(str(started.with_name(script)))} {command}"
    program = "python -m hsdlab.cli" if started.name == "__main__.py" else "hsdlab"
    return f"{program} {of_train(command) if script == TRAIN_SCRIPT else hyphenated(command)}"
