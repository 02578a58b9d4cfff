"""``compile=True`` decodes the same text, compiles each kind of layer once, and captures each executed set once.

No GPU is needed: the backend counts what torch compiles and runs it as it is, and the capture is a function.
"""

import gc
import itertools
import shutil
import weakref

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode

from hsdlab import CALM, HSD, FullDepth, ScheduledStrategy, SkipDecode, StaticDepth, SubLayerStrategy, generate
from hsdlab import testing as laws
from hsdlab.decoding import applied, compiled, static_cache
from hsdlab.decoding.compiled import Compilation, CompiledDecode
from hsdlab.decoding.decisions import Decisions
from hsdlab.decoding.families import decoder_parts
from hsdlab.decoding.skipping import skippable
from hsdlab.decoding.step_graphs import StepGraphs
from hsdlab.errors import RunError, UserError
from hsdlab.testing import tiny_model

NEW_TOKENS = 8
SCHEDULES = [FullDepth(), HSD(1, 0, 5), SkipDecode(2, 5), StaticDepth(3)]


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama")


EAGER = Compilation(backend="eager")
"""Compiles as usual, into torch's own operators; tests that do not count share what it compiled."""


class Counting:
    """A backend of torch.compile that counts graphs, and a capture that counts steps."""

    def __init__(self):
        self.graphs, self.captured = 0, 0

    def __call__(self, graph, inputs):
        self.graphs += 1
        return graph.forward

    def capture(self, step):
        self.captured += 1
        return step

    @property
    def compilation(self):
        return Compilation(backend=self, capture=self.capture)

    @property
    def capture_alone(self):
        return Compilation(backend="eager", capture=self.capture)


def decode(model, strategy, compile=False, rows=3, **options):
    ids, mask = laws.prompts(rows)
    call = {"max_new_tokens": NEW_TOKENS, "output_scores": True, "return_dict_in_generate": True, **options}
    torch.manual_seed(0)
    return generate(model, input_ids=ids, attention_mask=mask, strategy=strategy, compile=compile, **call)


def assert_same(got, expected, tolerance=1e-10):
    assert torch.equal(got.sequences, expected.sequences)
    assert torch.equal(got.trace.executed, expected.trace.executed)
    for a, b in zip(got.scores, expected.scores, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


@pytest.mark.parametrize("family", laws.TINY_FAMILIES)
def test_every_family_decodes_the_same_with_one_graph_for_all_layers(family):
    model, counting = tiny_model(family), Counting()
    beside = compiled._beside_layers(decoder_parts(model))
    assert_same(decode(model, HSD(1, 0, 5), counting.compilation), decode(model, HSD(1, 0, 5)))
    assert counting.graphs == 1 + len(beside)


@pytest.mark.parametrize("family", ["gpt2", "llama", "opt"])
def test_a_mask_that_is_added_to_the_scores(family):
    """In float32: transformers' eager attention overflows in float64 where there is padding."""
    model = tiny_model(family, attn_implementation="eager", dtype=torch.float32)
    assert_same(decode(model, HSD(1, 0, 5), EAGER), decode(model, HSD(1, 0, 5)), tolerance=1e-3)


@pytest.mark.parametrize("mode", laws.MODES)
@pytest.mark.parametrize("strategy", SCHEDULES, ids=repr)
def test_every_schedule_decodes_the_same_in_every_way(model, strategy, mode):
    expected = decode(model, strategy, **laws.MODES[mode])
    assert_same(decode(model, strategy, EAGER, **laws.MODES[mode]), expected)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05), (torch.float16, 0.01)], ids=str
)
def test_every_dtype_gives_the_logits_of_the_uncompiled_decode(dtype, tolerance):
    """Of one step: texts may part at a tie in reduced precision."""
    model = tiny_model("llama", dtype=dtype)
    expected = decode(model, HSD(1, 0, 5), max_new_tokens=2)
    got = decode(model, HSD(1, 0, 5), EAGER, max_new_tokens=2)
    assert model.dtype == dtype
    assert (got.scores[1] - expected.scores[1]).abs().max() <= tolerance * expected.scores[1].abs().max()


def test_each_executed_set_is_captured_once_and_nothing_is_compiled_again(model):
    counting, strategy = Counting(), HSD(1, 0, 5)
    sets = {frozenset(layers) for layers in strategy.scheduled_layers(6, NEW_TOKENS)}
    first = decode(model, strategy, counting.compilation)
    compiled_once = counting.graphs
    assert (first.warmup.captured, first.warmup.graphs, counting.captured) == (len(sets), len(sets), len(sets))
    assert first.warmup.seconds > 0

    second = decode(model, strategy, counting.compilation)
    assert (second.warmup.captured, second.warmup.graphs, second.warmup.seconds) == (0, len(sets), 0)
    third = decode(model, StaticDepth(3), counting.compilation)  # (0, 3, 5) is no set of HSD's
    assert (third.warmup.captured, third.warmup.graphs) == (1, len(sets) + 1)
    assert counting.graphs == compiled_once
    for got in (first, second):
        assert_same(got, decode(model, strategy))


def test_prompts_of_other_lengths_share_graphs_up_to_a_multiple_of_columns(model, monkeypatch):
    counting = Counting()
    decode(model, FullDepth(), counting.capture_alone)
    decode(model, FullDepth(), counting.capture_alone, max_new_tokens=NEW_TOKENS + 3)
    assert counting.captured == 1
    monkeypatch.setattr(static_cache, "COLUMNS", 8)
    monkeypatch.setattr(compiled, "COLUMNS", 8)
    decode(model, FullDepth(), counting.capture_alone)  # 12 tokens: 16 columns
    assert counting.captured == 2


def test_more_shapes_than_torch_would_recompile_for(monkeypatch):
    model, counting = tiny_model("llama", num_layers=1), Counting()
    monkeypatch.setattr(compiled, "_beside_layers", lambda parts: [])
    with torch._dynamo.config.patch(recompile_limit=1):
        for rows in (1, 2, 3):
            decode(model, FullDepth(), counting.compilation, rows=rows, max_new_tokens=2)
        assert torch._dynamo.config.recompile_limit == 1  # the user's own is back
    assert counting.graphs == counting.captured == 3


class NothingIsRead(TorchDispatchMode):
    """Refuses every operator that waits for the device."""

    WAITS = ("_local_scalar_dense", "nonzero", "equal", "is_nonzero", "item", "unique", "masked_select")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.overloadpacket.__name__ not in self.WAITS, func
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("mode", ["greedy", "beam"])
def test_a_decode_step_reads_nothing_from_the_device(model, mode, monkeypatch):
    steps = []
    begin_step, run = static_cache.StaticCache.begin_step, StepGraphs.run

    def begin_reading_nothing(self, inputs):
        with NothingIsRead():
            return begin_step(self, inputs)

    def run_reading_nothing(self, layers, step):
        with NothingIsRead():
            run(self, layers, step)
        steps.append(layers)

    monkeypatch.setattr(compiled, "_compiled", lambda function, backend: function)  # torch compiles in no such mode
    monkeypatch.setattr(static_cache.StaticCache, "begin_step", begin_reading_nothing)
    monkeypatch.setattr(StepGraphs, "run", run_reading_nothing)
    decode(model, HSD(1, 0, 5), EAGER, **laws.MODES[mode])
    assert len(steps) == NEW_TOKENS - 1


def test_beams_move_without_reading_anything(model):
    buffers = static_cache.StepBuffers(4, 16, model)
    buffers.write_prompt(0, *(torch.rand(2, 2, 5, 8).double() for _ in range(2)), copies=2)
    before = buffers.blocks[0][0].clone()
    buffers.blocks[0][0][:, :, 5] = torch.arange(4)[:, None, None]
    with NothingIsRead():
        buffers.reorder(torch.tensor([1, 1, 2, 2]), 5, 6)
    assert buffers.blocks[0][0][:, 0, 5, 0].tolist() == [1, 1, 2, 2]
    assert torch.equal(buffers.blocks[0][0][:, :, :5], before[:, :, :5])


def test_a_step_runs_on_a_device_that_has_no_values(monkeypatch):
    """On torch's meta device every read of a value is an error, and so is most mixing with tensors on the CPU."""
    monkeypatch.setattr(static_cache, "now_s", lambda device: 0.0)
    monkeypatch.setattr("hsdlab.decoding.step_graphs.now_s", lambda device: 0.0)
    monkeypatch.setattr(compiled, "_compiled", lambda function, backend: function)
    monkeypatch.setattr(CompiledDecode, "_check_prompt", lambda *_: None)  # it reads the prompt's mask, once a decode
    model = tiny_model("llama", dtype=torch.float32).to("meta")
    parts = decoder_parts(model)
    decisions = Decisions(HSD(1, 0, 5), 6, NEW_TOKENS, sources=2)
    decoded = CompiledDecode(parts, decisions, Compilation(), rows=4, prompt_length=5)
    ids = torch.ones(4, 5, dtype=torch.long, device="meta")
    inputs = {"past_key_values": decoded.cache, "use_cache": True}
    with torch.no_grad(), skippable(parts), decoded.steps():
        model(input_ids=ids, position_ids=ids, **inputs)  # whose mask, if there were one, transformers would read
        for step in range(3):
            mask = torch.ones(4, 6 + step, dtype=torch.long, device="meta")
            logits = model(input_ids=ids[:, :1], position_ids=ids[:, :1], attention_mask=mask, **inputs).logits
            decoded.cache.reorder_cache(torch.zeros(4, dtype=torch.long, device="meta"))
    assert logits.shape == (4, 1, laws.VOCABULARY)
    assert logits.device.type == "meta"
    assert len(decoded.cache.executed) == 3


def test_buffers_serve_decodes_in_and_outside_of_inference_mode(model):
    counting = Counting()
    expected = decode(model, HSD(1, 0, 5))
    with torch.inference_mode():
        first = decode(model, HSD(1, 0, 5), counting.capture_alone)
    second = decode(model, HSD(1, 0, 5), counting.capture_alone)
    with torch.inference_mode():
        third = decode(model, HSD(1, 0, 5), counting.capture_alone)
    for got in (first, second, third):
        assert_same(got, expected)
    assert second.warmup.captured == 0


def test_what_an_earlier_decode_left_behind_changes_nothing(model):
    counting = Counting()
    expected = decode(model, FullDepth(), counting.capture_alone)
    for pair in compiled._workspaces[model].buffers.blocks.values():
        for block in pair:
            block.fill_(torch.nan)
    assert_same(decode(model, FullDepth(), counting.capture_alone), expected)


def test_weights_at_another_address_are_captured_anew():
    model, counting = tiny_model("llama"), Counting()
    decode(model, FullDepth(), counting.capture_alone)
    weight = next(layer.weight for layer in model.modules() if isinstance(layer, torch.nn.Linear))
    weight.data = weight.data * 2
    expected = decode(model, FullDepth())
    assert_same(decode(model, FullDepth(), counting.capture_alone), expected)
    assert counting.captured == 2


def test_memory_is_freed_with_the_model():
    model = tiny_model("llama", num_layers=2)
    decode(model, FullDepth(), EAGER)
    workspace = weakref.ref(compiled._workspaces[model])
    del model
    gc.collect()  # other tests' models may go as well, so that workspaces are not counted
    assert workspace() is None


def test_the_time_of_warming_up_is_in_no_other_time(model, monkeypatch):
    clock = itertools.count()
    monkeypatch.setattr("hsdlab.decoding.step_graphs.now_s", lambda device: 100.0 * next(clock))
    got = decode(model, FullDepth(), Counting().capture_alone)
    assert got.warmup.seconds == 100
    assert -100 < got.timing.decode_s < 0  # the clock above is not the clock of the decode


def test_the_cache_counts_all_columns_of_the_layers_that_this_decode_runs(model):
    decode(model, FullDepth(), EAGER)
    got = decode(model, StaticDepth(3), EAGER)
    keys_and_values = 2 * 3 * 2 * 128 * 8 * 8  # pair, rows, heads, columns, head dim, bytes
    assert got.cache_bytes == 3 * keys_and_values
    assert got.trace.filled == 0


def test_model_generate_takes_compile_too(model):
    ids, mask = laws.prompts(2)
    counting = Counting()
    with HSD(1, 0, 5).applied_to(model) as run:
        model.generate(ids, attention_mask=mask, max_new_tokens=4, compile=counting.capture_alone)
        assert run.output.warmup.captured == counting.captured > 0
        model.generate(ids, attention_mask=mask, max_new_tokens=4)
        assert run.output.warmup is None


def test_the_model_is_restored_also_after_an_error(model):
    before = dict(vars(model))
    decode(model, FullDepth(), EAGER)
    assert vars(model) == before

    def broken(graph, inputs):
        raise ValueError("no compiler here")

    with pytest.raises(RunError, match=r"torch cannot compile a layer.*no compiler here"):
        decode(model, FullDepth(), Compilation(backend=broken))
    assert vars(model) == before
    assert all("forward" not in vars(module) for module in model.modules())


def test_a_forward_pass_without_the_cache_is_an_error(model, monkeypatch):
    prepare, calls = model.prepare_inputs_for_generation, itertools.count()

    def dropping(*args, **kwargs):
        inputs = prepare(*args, **kwargs)
        return inputs if next(calls) < 2 else {**inputs, "past_key_values": None}

    monkeypatch.setattr(model, "prepare_inputs_for_generation", dropping)
    with pytest.raises(RunError, match="Forward pass 3"):
        decode(model, FullDepth(), EAGER)


class Growing(ScheduledStrategy):
    """Runs layers that it skipped before."""

    def layers_at(self, step, num_layers, max_steps):
        return range(min(num_layers, 2 + step))


class ShortPrompts(FullDepth):
    """Skips a layer in prompts of less than 5 tokens."""

    def scheduled_prompt(self, prompt_length, num_layers):
        return None if prompt_length >= 5 else [range(1, num_layers)] * prompt_length


class Prompts(FullDepth):
    """Skips a layer in every prompt."""

    def scheduled_prompt(self, prompt_length, num_layers):
        return [range(1, num_layers)] * prompt_length


@pytest.mark.parametrize(
    ("strategy", "options", "message"),
    [
        (CALM(), {}, "CALM chooses layers while it decodes"),
        (SubLayerStrategy(), {}, "SubLayerStrategy runs attention and MLP apart"),
        (Growing(), {}, "Growing runs layers that an earlier step skipped"),
        (Prompts(), {}, "Prompts skips layers in the prompt"),
        (ShortPrompts(), {"compile": EAGER}, "ShortPrompts skips layers in the prompt"),
        (FullDepth(), {"compile": "yes"}, "compile is 'yes'; expected True or False"),
        (FullDepth(), {"output_hidden_states": True}, "output_hidden_states"),
    ],
    ids=["calm", "sub-layers", "growing", "prompts", "short prompts", "no switch", "hidden states"],
)
def test_what_cannot_be_compiled_is_refused(model, strategy, options, message):
    with pytest.raises(UserError, match=message):
        decode(model, strategy, **{"compile": True, **options})


def test_autocast_is_refused(model):
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(UserError, match="compile=True: autocast"):
        decode(model, FullDepth(), True)


def test_models_that_cannot_be_compiled_are_refused():
    options = {"max_new_tokens": 3}
    with pytest.raises(UserError, match="is not of a family that is tested compiled"):
        decode(tiny_model("olmo"), FullDepth(), True, **options)
    with pytest.raises(UserError, match="attends by 'flex_attention'"):
        decode(tiny_model("llama", attn_implementation="flex_attention"), FullDepth(), True, **options)
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    with pytest.raises(UserError, match=r"rotary embeddings .* \(dynamic\) depend on the length"):
        decode(tiny_model("llama", rope_parameters=rope), FullDepth(), True, **options)
    adapted = get_peft_model(tiny_model("llama"), LoraConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(UserError, match="merge it first"):
        decode(adapted, FullDepth(), True, **options)
    quantised = tiny_model("llama")
    quantised.is_quantized = True
    with pytest.raises(UserError, match="quantised"):
        decode(quantised, FullDepth(), True, **options)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
def test_inductor_gives_the_same_logits():
    model = tiny_model("llama", dtype=torch.float32, num_layers=3)
    assert_same(decode(model, HSD(1, 0, 2), True), decode(model, HSD(1, 0, 2)), tolerance=1e-4)


def test_a_strategy_applied_outside_compiles_nothing_by_itself(model):
    with applied(model, FullDepth()) as run:
        model.generate(laws.prompts(1)[0], max_new_tokens=2)
    assert run.output.warmup is None
