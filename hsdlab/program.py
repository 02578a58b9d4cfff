"""What this program is called where it was started, so that a printed command can be typed as it is printed."""

import shlex
import sys
from pathlib import Path

EVALUATE_SCRIPT = "evaluate.py"
TRAIN_SCRIPT = "train.py"
VALIDATE_LOSS = "validate-loss"
"""`train.py validate` as a command of `hsdlab`, where `validate` is that of `evaluate.py`.

`validate` and `test` decode alike and differ in the split alone, so that they keep their names side by side; what
`train.py validate` computes is a loss, and the name says so.
"""


def hyphenated(command: str) -> str:
    """Return the name of a command as it is typed."""
    return command.replace("_", "-")


def of_train(command: str) -> str:
    """Return the name that `hsdlab` gives to a command of `train.py`."""
    return VALIDATE_LOSS if command == "validate" else hyphenated(command)


def typed(command: str, script: str = EVALUATE_SCRIPT) -> str:
    """Return a command as it has to be typed where this process was started.

    Args:
        command: As the script names it, such as "test" or "fit_exit_classifier".
        script: The script that has it: "evaluate.py" or "train.py".

    Returns:
        "python evaluate.py test" where one of the two scripts was started, "hsdlab test" elsewhere.
    """
    started = Path(sys.argv[0])
    if started.name in (EVALUATE_SCRIPT, TRAIN_SCRIPT):
        return f"python {shlex.quote(str(started.with_name(script)))} {command}"
    program = "python -m hsdlab.cli" if started.name == "__main__.py" else "hsdlab"
    return f"{program} {of_train(command) if script == TRAIN_SCRIPT else hyphenated(command)}"
