"""Several cells of a bench, and its limits: the same layers removed, transformers' early exit."""

import json
from importlib import import_module

import pytest
import torch
from matplotlib.image import imread

from hsdlab.records.bench import BenchResult
from hsdlab.runs.bench import run_bench
from hsdlab.runs.bench_cells import BenchOptions, Cell
from hsdlab.runs.bench_limits import EarlyExitSide, LayersRemovedSide
from hsdlab.strategies import CALM, SubLayerStrategy
from hsdlab.testing import tiny_model
from tests.runs.test_bench import (
    HALF,
    HALF_DEPTHS,
    LAYER_S,
    LAYERS,
    NEW_TOKENS,
    OPTIONS,
    STEPS,
    batch,
    layer_clock,
    model,
    prompts,
)
from tests.tiny_runs import options, run

__all__ = ["layer_clock", "model", "prompts"]  # fixtures


def bench(model, cells, strategies, folder, **given):
    chosen = BenchOptions(**{"new_tokens": NEW_TOKENS, "repeats": 2} | given)
    return run_bench(model, cells, strategies, options=chosen, folder=folder)


def side(cell, name):
    (found,) = [each for each in cell.sides if each.name == name]
    return found


def test_removed_layers_take_the_time_of_those_that_stay(model, prompts, layer_clock, tmp_path):
    layers = list(model.model.layers)
    report = bench(model, [Cell([batch(each) for each in prompts])], [HALF], tmp_path, removed_layers=True)
    (cell,) = report.cells
    removed, skipped = side(cell, f"layers removed: {HALF!r}"), side(cell, repr(HALF))
    assert removed.decode_s == ((sum(HALF_DEPTHS) * LAYER_S,) * 2,) * 2
    assert removed.prompt_s == ((LAYERS * LAYER_S,) * 2,) * 2
    assert skipped.over_removed.median == 1.0
    assert removed.average_layers == sum(HALF_DEPTHS) / STEPS
    assert list(model.model.layers) == layers
    assert not model.model._forward_pre_hooks


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("beams", [1, 2])
def test_a_removed_layer_may_return(beams, window, model, prompts):
    schedule = [[0, 3], [0, 1, 2, 3], [1, 3], [3], [0, 1, 2, 3]]
    ran = []
    if window is not None:
        model = tiny_model("mistral_window", num_layers=LAYERS, vocab_size=model.config.vocab_size)
    for index, layer in enumerate(model.model.layers):
        layer.mlp.register_forward_hook(lambda *_, index=index: ran.append(index))
    LayersRemovedSide(model, [batch(prompts[0])], {**OPTIONS, "num_beams": beams}, schedule)(0)
    assert ran == [*range(LAYERS), *(layer for layers in schedule for layer in layers)]


@pytest.mark.parametrize(
    ("strategy", "reason"),
    [
        (CALM(0.5), "it chooses its layers while it decodes"),
        (SubLayerStrategy([1]), "it runs attention and MLP apart"),
    ],
    ids=repr,
)
def test_where_there_is_no_limit_the_reason_is_told(strategy, reason, model, prompts, tmp_path):
    (cell,) = bench(model, [Cell([batch(prompts[0])])], [strategy], tmp_path, removed_layers=True).cells
    ((name, why),) = [(each.name, each.reason) for each in cell.not_measured]
    assert (name, why) == (f"layers removed: {strategy!r}", reason)


def test_early_exit_is_transformers_own_and_leaves_the_model_as_it_was(model, prompts, tmp_path):
    before = model.config.to_dict()
    (cell,) = bench(model, [Cell([batch(prompts[0])])], [], tmp_path, new_tokens=40, assistant_early_exit=2).cells
    found = side(cell, "assistant_early_exit=2")
    assert found.decode_step_ms.median > 0
    assert found.average_layers is None
    assert model.config.to_dict() == before


@pytest.mark.parametrize(
    ("family", "rows", "beams", "why"),
    [
        ("gpt2", 1, 1, "transformers cannot draft with this model (IndexError: list index out of range)"),
        ("llama", 2, 1, "transformers drafts for one sequence at a time"),
        ("llama", 1, 2, "transformers drafts for greedy decoding only"),
    ],
)
def test_where_there_is_no_early_exit_the_reason_is_told(family, rows, beams, why):
    input_ids = torch.full((rows, 4), 5)
    given = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "num_beams": beams}
    assert EarlyExitSide(tiny_model(family), [batch(input_ids)], given, 2).why_not() == why


def test_a_cell_of_another_dtype_is_measured_on_a_copy(model, prompts, tmp_path):
    cells = [Cell([batch(prompts[0])], dtype=dtype) for dtype in ("float32", "bfloat16")]
    report = bench(model, cells, [HALF], tmp_path)
    assert [cell.dtype for cell in report.cells] == ["float32", "bfloat16"]
    assert model.dtype == torch.float32
    assert report.planned_cells == 2


@pytest.mark.usefixtures("drawn_pictures")
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_bench_that_is_cut_short_keeps_its_finished_cells(error, model, prompts, tmp_path, monkeypatch, capsys):
    bench_module = import_module("hsdlab.runs.bench")  # the package has a function of this name
    measured = bench_module._measured

    def breaks(model, cell, *rest):
        if cell.num_beams == 2:
            raise error
        return measured(model, cell, *rest)

    monkeypatch.setattr(bench_module, "_measured", breaks)
    with pytest.raises(error):
        bench(model, [Cell([batch(prompts[0])], beams) for beams in (1, 2)], [HALF], tmp_path)
    kept = BenchResult.read(tmp_path / "bench.json")
    assert [cell.num_beams for cell in kept.cells] == [1]
    assert kept.planned_cells == 2
    assert "FullDepth" in capsys.readouterr().out
    assert imread(tmp_path / "bench.png").std() > 0.01  # something is drawn


def test_prompts_have_the_asked_length(monkeypatch, tmp_path):
    args = ["--prompt_tokens=[3,7]", "--batch_sizes=[1,2]", "--prompts=2", "--new_tokens=3", "--repeats=1"]
    run(monkeypatch, "bench", *options(tmp_path), f"--output={tmp_path / 'out'}", "--strategies=[]", *args)
    cells = json.loads((tmp_path / "out" / "bench.json").read_text(encoding="utf-8"))["cells"]
    assert [(cell["batch_size"], cell["prompt_tokens"]) for cell in cells] == [
        (1, [3] * 2),
        (2, [3] * 4),
        (1, [7] * 2),
        (2, [7] * 4),
    ]
