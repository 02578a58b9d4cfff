"""``compile=True`` on a CUDA GPU: real CUDA graphs. Skipped without a GPU; `make gpu-check` runs them."""

import gc

import pytest
import torch

from hsdlab import HSD, FullDepth, SkipDecode, StaticDepth, generate
from hsdlab import testing as laws
from hsdlab.decoding import compiled
from hsdlab.decoding.step_graphs import StepGraphs
from hsdlab.testing import tiny_model

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")

NEW_TOKENS = 8
HSD_SETS = 3  # of HSD(1, 0, 5) in 7 steps on 6 layers


def decode(model, strategy, compile=False, rows=3, **options):
    ids, mask = (part.to(model.device) for part in laws.prompts(rows))
    call = {"max_new_tokens": NEW_TOKENS, "output_scores": True, **options}
    torch.manual_seed(0)
    return generate(model, input_ids=ids, attention_mask=mask, strategy=strategy, compile=compile, **call)


def assert_same(got, expected, tolerance):
    assert torch.equal(got.sequences, expected.sequences)
    assert torch.equal(got.trace.executed, expected.trace.executed)
    for a, b in zip(got.scores, expected.scores, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama", dtype=torch.float32).to("cuda")


@pytest.mark.parametrize("mode", laws.MODES)
@pytest.mark.parametrize("strategy", [FullDepth(), HSD(1, 0, 5), SkipDecode(2, 5), StaticDepth(3)], ids=repr)
def test_every_schedule_decodes_the_same_in_every_way(model, strategy, mode):
    expected = decode(model, strategy, **laws.MODES[mode])
    for _ in range(2):  # the second replays the graphs of the first
        assert_same(decode(model, strategy, True, **laws.MODES[mode]), expected, tolerance=1e-3)


@pytest.mark.parametrize("family", laws.TINY_FAMILIES)
def test_every_family(family):
    model = tiny_model(family, dtype=torch.float32).to("cuda")
    assert_same(decode(model, HSD(1, 0, 5), True), decode(model, HSD(1, 0, 5)), tolerance=1e-3)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.05), (torch.float16, 0.01)], ids=str)
def test_reduced_precision(dtype, tolerance):
    model = tiny_model("llama", dtype=dtype).to("cuda")
    expected = decode(model, HSD(1, 0, 5), max_new_tokens=2).scores[1]
    got = decode(model, HSD(1, 0, 5), True, max_new_tokens=2).scores[1]
    assert (got - expected).abs().max() <= tolerance * expected.abs().max()


def test_one_graph_for_each_executed_set_and_its_memory():
    kept = len(compiled._workspaces)
    model = tiny_model("llama", dtype=torch.float32, seed=1).to("cuda")
    first = decode(model, HSD(1, 0, 5), True).warmup
    assert (first.captured, first.graphs) == (HSD_SETS, HSD_SETS)
    assert first.graph_bytes > 0
    assert first.seconds > 0
    second = decode(model, HSD(1, 0, 5), True).warmup
    assert (second.captured, second.graphs, second.seconds) == (0, HSD_SETS, 0)
    del model
    gc.collect()
    assert len(compiled._workspaces) == kept


def test_a_step_never_waits_for_the_gpu(model, monkeypatch):
    decode(model, HSD(1, 0, 5), True)
    run = StepGraphs.run

    def watched(self, layers, step):
        torch.cuda.set_sync_debug_mode("error")
        try:
            run(self, layers, step)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(StepGraphs, "run", watched)
    assert decode(model, HSD(1, 0, 5), True).warmup.captured == 0


def test_training_between_decodes_is_seen_by_the_graphs():
    model = tiny_model("llama", dtype=torch.float32, seed=2).to("cuda")
    decode(model, FullDepth(), True)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(0.9)
    expected = decode(model, FullDepth())
    got = decode(model, FullDepth(), True)
    assert got.warmup.captured == 0
    assert_same(got, expected, tolerance=1e-3)
