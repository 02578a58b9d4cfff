"""How commands end: the exit code and the sentence for each kind of end."""

import subprocess
import sys
from pathlib import Path

import pytest
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException

from hsdlab import UserError
from hsdlab.cli.exits import run_or_exit
from hsdlab.errors import RunError


def raising(error):
    def command(args):
        raise error

    return command


@pytest.mark.parametrize(
    "error", [UserError("why"), RunError("why"), FileNotFoundError("why"), MisconfigurationException("why")]
)
def test_what_the_user_can_mend_is_one_sentence(error):
    with pytest.raises(SystemExit) as end:
        run_or_exit(raising(error), ["test"])
    assert end.value.code == "error: why"


@pytest.mark.parametrize("error", [ValueError("ours"), TypeError("ours"), AssertionError("ours")])
def test_what_nobody_foresaw_keeps_its_traceback(error):
    with pytest.raises(type(error), match="ours"):
        run_or_exit(raising(error), ["test"])


def test_what_a_library_wraps_is_found():
    def command(args):
        try:
            raise UserError("why")
        except UserError as error:
            raise TypeError("a library's") from error

    with pytest.raises(SystemExit) as end:
        run_or_exit(command, [])
    assert end.value.code == "error: why"


def test_debug_shows_the_traceback_and_is_no_option_of_the_command():
    seen = []

    def command(args):
        seen.append(args)
        raise UserError("why")

    with pytest.raises(UserError, match="why"):
        run_or_exit(command, ["test", "--debug", "--x=1"])
    assert seen == [["test", "--x=1"]]


def test_without_arguments_those_of_the_process_stay_where_they_are(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["evaluate.py", "test", "--debug"])
    seen = []
    run_or_exit(lambda args: seen.append((args, list(sys.argv))))
    assert seen == [(None, ["evaluate.py", "test"])]


def interrupted_by_lightning(args):
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt:
        sys.exit(1)


@pytest.mark.parametrize(
    ("command", "code", "says"),
    [
        (raising(SIGTERMException()), 143, "Stopped by SIGTERM. Go on."),
        (interrupted_by_lightning, 130, "Stopped by Ctrl-C. Go on."),
        (raising(KeyboardInterrupt()), 130, "Stopped by Ctrl-C. Go on."),
        (raising(SystemExit(2)), 2, ""),
    ],
)
def test_a_run_that_was_stopped_tells_by_what_and_how_to_go_on(command, code, says, capsys):
    with pytest.raises(SystemExit) as end:
        run_or_exit(command, [], goes_on="Go on.")
    assert end.value.code == code
    assert capsys.readouterr().err.strip() == says


def test_the_package_runs_as_evaluate_does():
    done = subprocess.run(
        [sys.executable, "-m", "hsdlab.cli", "report", "nowhere"],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: nowhere holds no finished run")
