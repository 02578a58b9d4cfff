"""A package of an extra that is not installed is one sentence with the command that installs it."""

import sys
import tomllib
from functools import partial
from pathlib import Path

import pytest
from transformers import PreTrainedConfig

from hsdlab.data import HubDataset
from hsdlab.data.rows import parquet
from hsdlab.errors import RunError
from hsdlab.extras import of_extra
from hsdlab.models.quantization import loading_options
from hsdlab.runs.tunable import check_tuning

ROOT = Path(__file__).parents[1]


def tune():
    goal = {"max_loss": 0.1, "speedup": None, "metric": "rougeL", "computed": ["rouge"]}
    check_tuning(["HSD"], **goal, max_new_tokens=9, examples=["a"])


def quantise(how):
    loading_options("gpt2", how, "float32", PreTrainedConfig())


@pytest.mark.parametrize(
    ("package", "extra", "purpose", "use"),
    [
        ("optuna", "tune", "`tune`", tune),
        ("datasets", "data", "HubDataset", lambda: HubDataset("e2e_nlg").prepare_data()),
        ("pyarrow", "data", "A Parquet file", lambda: list(parquet(Path("a.parquet")))),
        ("torchao", "int8", "quantization=int8", partial(quantise, "int8")),
        (
            "bitsandbytes",
            "nf4",
            "quantization=nf4",
            partial(quantise, "nf4"),
        ),
    ],
)
def test_a_missing_package_is_one_sentence(package, extra, purpose, use, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    with pytest.raises(RunError) as refused:
        use()
    expected = f"{purpose} needs the package {package}, which is not installed: run `pip install 'hsdlab[{extra}]'`."
    assert str(refused.value) == expected
    with (ROOT / "pyproject.toml").open("rb") as file:
        extras = tomllib.load(file)["project"]["optional-dependencies"]
    assert any(each.startswith(package) for each in extras[extra])


def test_what_fails_for_another_reason_passes_through():
    with pytest.raises(ImportError, match="broken"), of_extra("tune", "`tune`"):
        raise ImportError("broken")
