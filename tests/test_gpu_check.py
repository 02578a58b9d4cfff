"""The check on a GPU measures what it says, and its record says what was measured; here on a tiny model on the CPU."""

import json

import pytest
import torch

from benchmarks import gpu_check
from hsdlab.decoding.compiled import Compilation
from hsdlab.records.bench import FULL_DEPTH, PLAIN_COMPILED
from hsdlab.testing import tiny_model


@pytest.fixture(scope="module")
def cell():
    model = tiny_model("llama", dtype=torch.float32)
    how = Compilation(backend="eager")
    return gpu_check.measure(model, 1, compile=how, prompt_tokens=8, new_tokens=4, rounds=2, warmup_rounds=1)


def test_all_sides_are_timed_in_the_same_rounds(cell):
    sides = cell["sides"]
    half, hsd = "StaticDepth(number=3)", "HSD(num_skipped=1, min_exit=0, max_exit=3)"
    assert list(sides) == [PLAIN_COMPILED, FULL_DEPTH, half, hsd]
    assert all(len(side["step_ms_of_each_round"]) == 2 for side in sides.values())
    assert sides[FULL_DEPTH]["average_layers"] == 6
    assert sides[half]["average_layers"] == 3
    full_depth, plain = (sides[name]["step_ms_of_each_round"] for name in (FULL_DEPTH, PLAIN_COMPILED))
    low, high = sorted(a / b for a, b in zip(full_depth, plain, strict=True))
    assert low <= sides[FULL_DEPTH]["time_over_plain_compiled"]["median"] <= high
    assert sides[PLAIN_COMPILED]["warmup"] is None
    assert sum(sides[name]["warmup"]["captured"] for name in (FULL_DEPTH, half, hsd)) >= 2
    json.dumps(cell)


@pytest.mark.parametrize(("full_depth", "half", "met"), [(1.05, 1.5, True), (1.06, 1.49, False)])
def test_goals_are_met_at_their_limit_and_not_beyond(cell, full_depth, half, met):
    sides = {name: {**side} for name, side in cell["sides"].items()}
    sides[FULL_DEPTH]["time_over_plain_compiled"] = {"median": full_depth}
    sides["StaticDepth(number=3)"]["speed_up_over_full_depth"] = {"median": half}
    reached = gpu_check.goals([{**cell, "sides": sides}])
    assert [each["met"] for each in reached] == [met, met]


def test_the_model_has_a_billion_parameters_and_half_of_its_layers_is_a_whole_number():
    model = gpu_check.random_model("meta", torch.bfloat16, **gpu_check.SIZES)
    assert model.num_parameters() > 1e9
    assert model.config.num_hidden_layers % 2 == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_says_so_and_writes_nothing(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(gpu_check, "RECORD", tmp_path / "gpu.json")
    assert gpu_check.main() == 2
    assert capsys.readouterr().err == (
        "gpu-check needs a CUDA GPU, and torch finds none here; nothing was run or written.\n"
    )
    assert not list(tmp_path.iterdir())
