"""The bench on a tiny model under a clock that advances a fixed time whenever a layer runs."""

import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import hsdlab.decoding.timing
from hsdlab.decoding.cost import ideal_speedup
from hsdlab.records.bench import BenchResult, Spread
from hsdlab.records.provenance import run_info
from hsdlab.runs import bench_sides
from hsdlab.runs.bench import run_bench
from hsdlab.runs.bench_cells import Batch, BenchOptions, Cell
from hsdlab.runs.bench_sides import PlainSide
from hsdlab.strategies import CALM, HSD, FullDepth, OracleExit, SkipDecode

LAYERS = 4
NEW_TOKENS = 6
OPTIONS = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "eos_token_id": None}
STEPS = NEW_TOKENS - 1
LAYER_S = 1 / 64  # seconds that a layer takes; a power of two, so that sums are exact
HALF = HSD(num_skipped=1, min_exit=0, max_exit=2)
HALF_DEPTHS = [3, 3, 3, 3, 3]  # {0, 2} and the top max(1, round(2 - 2t/6)) = 2, 2, 1, 1, 1 layers


class HalfThenExit(HSD):
    """A schedule that a row may leave early."""

    def should_exit(self, state):
        return torch.ones(len(state.rows), dtype=torch.bool)


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
        tie_word_embeddings=False,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def prompts():
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(3, 64, (1, length), generator=generator) for length in (5, 8)]


@pytest.fixture
def layer_clock(model, monkeypatch):
    """A clock that each layer whose MLP runs moves on by LAYER_S; ``layers`` counts them."""
    clock = SimpleNamespace(layers=0)

    def tick(module, args, output):
        clock.layers += 1

    for layer in model.model.layers:
        layer.mlp.register_forward_hook(tick)
    fake = SimpleNamespace(perf_counter=lambda: clock.layers * LAYER_S)
    monkeypatch.setattr(hsdlab.decoding.timing, "time", fake)
    return clock


def batch(prompt):
    return Batch(prompt, torch.ones_like(prompt))


def bench(model, prompts, strategies, folder, run=None, **options):
    options = BenchOptions(**{"new_tokens": NEW_TOKENS, "repeats": 3} | options)
    cells = [Cell([batch(prompt) for prompt in prompts])]
    return run_bench(model, cells, strategies, options=options, folder=folder, run=run)


def sides_of(report):
    (cell,) = report.cells
    return cell.sides


def by_name(report):
    return {side.name: side for side in sides_of(report)}


def same(value):
    return Spread(*[pytest.approx(value)] * 3)


def test_times_are_those_of_the_layers_that_ran(model, prompts, layer_clock, tmp_path):
    shallow = SkipDecode(min_exit=1, max_exit=2)
    report = bench(model, prompts, [HALF, shallow], tmp_path)
    depths = {
        "plain generate": [LAYERS] * STEPS,
        "FullDepth": [LAYERS] * STEPS,
        repr(HALF): HALF_DEPTHS,
        repr(shallow): [3, 3, 3, 3, 2],  # {0} and the top round(2 - t/6) = 2, 2, 2, 2, 1 layers (1.5 to even)
    }
    assert [side.name for side in sides_of(report)] == list(depths)
    for name, side in by_name(report).items():
        seconds = sum(depths[name]) * LAYER_S
        full_s = LAYERS * STEPS * LAYER_S
        assert side.prompt_s == ((LAYERS * LAYER_S,) * 2,) * 3
        assert side.decode_s == ((seconds, seconds),) * 3
        assert side.decode_passes == ((STEPS, STEPS),) * 3
        assert side.decode_step_ms == same(1000 * seconds / STEPS)
        assert side.tokens_per_second == same(STEPS / seconds)
        assert side.speed_up == same(full_s / seconds)
        assert side.time_over_plain == same(seconds / full_s)
        assert side.prompt_ms == same(1000 * LAYERS * LAYER_S)
        if name != "plain generate":
            assert side.average_layers == pytest.approx(sum(depths[name]) / STEPS)


def test_each_side_decodes_each_prompt_once_a_round_after_one_round_of_warm_up(model, prompts, layer_clock, tmp_path):
    bench(model, prompts, [], tmp_path, repeats=3)
    assert layer_clock.layers == (1 + 3) * 2 * len(prompts) * LAYERS * (1 + STEPS)


def test_the_ideal_is_that_of_the_schedule_and_missing_without_one(model, prompts, layer_clock, tmp_path):
    report = bench(model, prompts, [HALF, CALM(threshold=0.5), HalfThenExit()], tmp_path)
    plain, full, half, *exits = sides_of(report)
    expected = ideal_speedup(model, HALF.scheduled_layers(LAYERS, NEW_TOKENS))
    assert 1 < expected < LAYERS / 3
    assert half.ideal_speed_up == expected
    assert half.reached == pytest.approx(LAYERS / 3 / expected)
    assert full.ideal_speed_up == full.reached == 1.0
    for side in (plain, *exits):
        assert side.ideal_speed_up is None
        assert side.reached is None


def test_costs(model, prompts, tmp_path):
    plain, full, half = sides_of(bench(model, prompts, [HALF], tmp_path))
    layer, head, channels, context = 32 * 32 * 2 + 32 * 16 * 2 + 3 * 32 * 64, 32 * 64, 32, (5 + 8) / 2 + 1 + 2
    for side, depth in ((full, 4), (half, 3)):
        expected = 2 * (depth * layer + head) + 4 * channels * context * depth
        assert side.flops_per_token == pytest.approx(expected)
    assert full.cache_mib == LAYERS * 2 * 16 * 4 * (8 + STEPS) / 2**20
    assert 0 < half.cache_mib < full.cache_mib
    assert plain.flops_per_token is plain.cache_mib is plain.average_layers is None


def test_the_end_of_a_sequence_is_switched_off(model, prompts, layer_clock, tmp_path):
    first = model.generate(prompts[0], max_new_tokens=1, eos_token_id=None)[0, -1].item()
    model.generation_config.eos_token_id = first
    report = bench(model, prompts, [FullDepth()], tmp_path, repeats=1)
    assert [side.decode_passes for side in sides_of(report)] == [((STEPS, STEPS),)] * 3


def test_plain_generate_runs_on_the_model_as_it_is(model, prompts, layer_clock, tmp_path):
    layer, seen = model.model.layers[0], []
    own = type(layer)
    layer.mlp.register_forward_pre_hook(lambda module, args: seen.append((type(layer), len(layer._forward_pre_hooks))))
    PlainSide(model, [batch(prompt) for prompt in prompts], OPTIONS)(0)
    # the clock's hook is gone once it has read the clock: it weighs on the prompt pass alone
    assert seen == [(own, 1), *[(own, 0)] * STEPS]


def test_no_hook_is_left_after_an_error(model, prompts):
    model.model.layers[1].register_forward_pre_hook(lambda module, args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        PlainSide(model, [batch(prompt) for prompt in prompts], OPTIONS)(0)
    assert not model.model.layers[0]._forward_pre_hooks


def test_other_tokens_than_plain_generate_are_an_error(model, prompts, tmp_path, monkeypatch):
    generate, wrong = bench_sides.generate, {"strategy": HALF}
    monkeypatch.setattr(bench_sides, "generate", lambda *args, **options: generate(*args, **options | wrong))
    with pytest.raises(RuntimeError, match="different tokens from prompt 0"):
        bench(model, prompts, [], tmp_path)
    assert not list(tmp_path.iterdir())


def test_files(model, prompts, tmp_path, capsys):
    folder = tmp_path / "new" / "bench"
    run = run_info(seed=1)
    run = replace(run, machine=replace(run.machine, cpu="Abacus 3000"))
    report = bench(model, prompts, [HALF], folder, repeats=2, run=run)
    assert sorted(path.name for path in folder.iterdir()) == ["bench.json", "bench.md", "bench.png"]
    assert BenchResult.read(folder / "bench.json") == report
    assert report.model.class_name == "LlamaForCausalLM"
    assert report.model.dtype == "float32"
    assert [cell.prompt_tokens for cell in report.cells] == [(5, 8)]
    assert (report.new_tokens, report.repeats, report.warmup_rounds) == (NEW_TOKENS, 2, 1)
    assert report.environment.threads == torch.get_num_threads()
    assert report.run == run
    text = re.sub(" +", " ", (folder / "bench.md").read_text())
    assert "2 prompts of 5 to 8 tokens; 6 new tokens; 2 rounds in alternation after 1 of warm-up" in text
    assert "Abacus 3000" in text
    for name in ("plain generate", "FullDepth", repr(HALF)):
        assert f"| `{name}` | " in text
    assert "FullDepth" in capsys.readouterr().out


def test_table_cells(model, prompts, layer_clock, tmp_path, capsys):
    bench(model, prompts, [HALF], tmp_path)
    lines = re.sub(" +", " ", (tmp_path / "bench.md").read_text()).splitlines()
    plain, half = (next(line for line in lines if line.startswith(f"| `{name}")) for name in ("plain", "HSD"))
    assert half.startswith(
        f"| `{HALF!r}` | 3.00 | 46.9 [46.9…46.9] | 21.3 | 1.33 [1.33…1.33] | 1.31 | 101.8 "
        "| -25.0 [-25.0…-25.0] | 62.5 [62.5…62.5] | "
    )
    assert half.endswith(" | 6.3e-05 | 0.00 |")
    printed = capsys.readouterr().out
    for figure in ("46.9…46.9", "6.3e-05", "-25.0…-25.0", "62.5…62.5", "1.33…1.33"):
        assert figure in printed  # whole: no cell is folded, though pytest's output has 80 columns
    assert plain.endswith("| 62.5 [62.5…62.5] | – | – |")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompts": []}, "expected at least one, with at least one batch in each"),
        ({"new_tokens": 1}, "new_tokens is 1; expected at least 2"),
        ({"repeats": 0}, "repeats is 0; expected at least 1"),
        ({"strategies": [OracleExit()]}, "OracleExit.* is an oracle"),
    ],
)
def test_bad_arguments(model, prompts, tmp_path, change, message):
    arguments = {"prompts": prompts, "strategies": [], "repeats": 1} | change
    with pytest.raises(ValueError, match=message):
        bench(model, folder=tmp_path, **arguments)
