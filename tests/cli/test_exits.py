"""How commands end: the exit code and the sentence for each kind of end."""

import subprocess
import sys
from pathlib import Path

import pytest
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException

from hsdlab import UserError
from hsdlab.cli.exits import run_or_exit
from hsdlab.cli.stops import WITHOUT_RESULT
from hsdlab.errors import RunError, faults_of_the_run


def raising(error):
    def command(args):
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UserError("why"), 2),
        (RunError("why"), "error: why"),
        (FileNotFoundError("why"), "error: why"),
        (MisconfigurationException("why"), "error: why"),
    ],
)
def test_what_the_user_can_mend_is_one_sentence(error, code, capsys):
    """An option's value ends with 2, all else with 1, which the interpreter makes of a text that it prints."""
    with pytest.raises(SystemExit, match=r"^error: why$") as end:
        run_or_exit(raising(error), ["test"])
    assert end.value.code == code
    assert capsys.readouterr().err == ("error: why\n" if code == 2 else "")


def test_a_file_that_is_not_as_it_has_to_be_is_no_options_fault():
    def command(args):
        with faults_of_the_run():
            raise UserError("the file")

    with pytest.raises(SystemExit) as end:
        run_or_exit(command, [])
    assert end.value.code == "error: the file"


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

    with pytest.raises(SystemExit, match=r"^error: why$"):
        run_or_exit(command, [])


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
        (raising(SIGTERMException()), 143, f"Stopped by SIGTERM. {WITHOUT_RESULT}"),
        (interrupted_by_lightning, 130, f"Stopped by Ctrl-C. {WITHOUT_RESULT}"),
        (raising(KeyboardInterrupt()), 130, f"Stopped by Ctrl-C. {WITHOUT_RESULT}"),
        (raising(SystemExit(2)), 2, ""),
    ],
)
def test_a_run_that_was_stopped_tells_by_what(command, code, says, capsys):
    with pytest.raises(SystemExit) as end:
        run_or_exit(command, [])
    assert end.value.code == code
    assert capsys.readouterr().err.strip() == says


@pytest.mark.slow
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
