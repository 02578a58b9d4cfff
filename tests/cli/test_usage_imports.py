"""What a usage error inside a command costs: Lightning's import, and little besides."""

import json
import subprocess
import sys

import pytest

from tests.law_cells import in_turns

LATER = {"sacrebleu", "rouge_score", "nltk", "tensorboard", "bert_score", "datasets", "optuna", "scipy", "pandas"}
"""What only a run needs."""
CODE = """
import contextlib, io, json, sys, time
start = time.process_time()
import lightning.pytorch.cli
lightning, before = time.process_time() - start, set(sys.modules)
from hsdlab.cli import commands
start, said = time.process_time(), io.StringIO()
with contextlib.redirect_stderr(said), contextlib.suppress(SystemExit):
    commands.main([sys.argv.pop(), "--bogus=1"])
print(json.dumps([said.getvalue(), time.process_time() - start, lightning, sorted(set(sys.modules) - before)]))
"""


@pytest.mark.parametrize(("command", "needs_peft"), in_turns([("compare", False), ("fit", True)], 2))
def test_a_usage_error_imports_nothing_that_only_a_run_needs(command, needs_peft):
    """The options of `fit` are those of peft's LoRA too; the seconds are of the CPU."""
    done = subprocess.run([sys.executable, "-c", CODE, command], capture_output=True, text=True, check=True)
    said, ours_s, lightning_s, modules = json.loads(done.stdout)
    assert f"error: `{command}` has no option --bogus\n" in said
    packages = {name.partition(".")[0] for name in modules}
    assert packages & (LATER | {"peft"}) == ({"peft"} if needs_peft else set())
    models = {name.split(".")[2] for name in modules if name.startswith("transformers.models.")}
    assert needs_peft or not models
    assert ours_s < lightning_s / 2
