"""Printed commands can be typed where they are printed."""

import sys

import pytest

from hsdlab.program import TRAIN_SCRIPT, typed


@pytest.mark.parametrize(
    ("started", "test", "validate"),
    [
        ("evaluate.py", "python evaluate.py test", "python train.py validate"),
        ("a b/train.py", "python 'a b/evaluate.py' test", "python 'a b/train.py' validate"),
        ("/usr/bin/hsdlab", "hsdlab test", "hsdlab validate-loss"),
        ("/x/hsdlab/cli/__main__.py", "python -m hsdlab.cli test", "python -m hsdlab.cli validate-loss"),
        ("my_script.py", "hsdlab test", "hsdlab validate-loss"),
    ],
)
def test_a_command_as_it_is_typed(started, test, validate, monkeypatch):
    monkeypatch.setattr(sys, "argv", [started])
    assert typed("test") == test
    assert typed("validate", TRAIN_SCRIPT) == validate


def test_hsdlab_has_hyphens_and_the_scripts_have_underscores(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["hsdlab"])
    assert typed("fit_exit_classifier", TRAIN_SCRIPT) == "hsdlab fit-exit-classifier"
    monkeypatch.setattr(sys, "argv", ["train.py"])
    assert typed("fit_exit_classifier", TRAIN_SCRIPT) == "python train.py fit_exit_classifier"
