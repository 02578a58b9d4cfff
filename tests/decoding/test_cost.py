"""Costs against counts made otherwise: torch's FLOP counter, and the bytes that its operators read."""

import itertools

import pytest
import torch

from hsdlab import CALM, HSD, FullDepth, SkipStrategy, StaticDepth, SubLayers, Verified
from hsdlab import testing as laws
from hsdlab.decoding.cost import decode_bytes, decode_flops, ideal_speedup, prompt_flops
from hsdlab.decoding.families import decoder_parts
from hsdlab.decoding.layer_parts import check_parts
from hsdlab.testing import MORE_FAMILIES, TINY_FAMILIES, decode, prompts, tiny_model
from tests.decoding.counted import counted
from tests.law_cells import ALL, HARD, in_turns
from tests.strategies_for_tests import ChangingPrompt, RandomPlan

WAYS = {
    "greedy": {"rows": 1},
    "left padding": {"rows": 3},
    "beams": {"rows": 2, "num_beams": 3},
    "samples": {"rows": 2, "do_sample": True, "num_return_sequences": 2},
}
# An oracle runs what it reports as not run. Verified pads the rows of a batch, which counts as nothing.
STRATEGIES = [strategy for strategy in ALL if not strategy.is_oracle and not isinstance(strategy, Verified)]


def cells():
    """Every family, strategy and way; in `make test`, every second strategy has the next family, in the next way."""
    for (f, family), (s, strategy), (w, way) in itertools.product(
        enumerate(TINY_FAMILIES), enumerate(STRATEGIES), enumerate(WAYS)
    ):
        marks = [pytest.mark.xdist_group(family)]
        if s % 2 or s // 2 % len(TINY_FAMILIES) != f or s // 2 % len(WAYS) != w:
            marks.append(pytest.mark.slow)
        yield pytest.param(family, strategy, way, marks=marks)


def ids(value):
    return repr(value) if isinstance(value, SkipStrategy) else str(value)


@pytest.fixture(scope="module")
def prefill():
    """Counts of prefills, each made once for a prompt schedule: a decode of one token."""
    made = {}

    def get(model, strategy, call):
        schedule = getattr(strategy, "scheduled_prompt", lambda *_: None)(laws.PROMPT_TOKENS, 6)
        key = (id(model), str(call), str(schedule))
        if key not in made:
            made[key] = counted(model, FullDepth() if schedule is None else strategy, max_new_tokens=1, **call)[1]
        return made[key]

    return get


def compare(model, strategy, prefill, rows, **options):
    """Check the cost model on one decode."""
    input_ids, mask = prompts(rows)
    call = {"input_ids": input_ids, "attention_mask": mask, **options}
    check_parts(decoder_parts(model))  # else the first decode of sub-layers would check the model, which computes more
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        output, both = counted(model, strategy, max_new_tokens=9, **call)
        prompt = prefill(model, strategy, call)
        steps = both - prompt
    assert prompt_flops(model, output.trace) == pytest.approx(prompt.flops, rel=0.01)
    assert decode_flops(model, output.trace) == pytest.approx(steps.flops, rel=0.01)
    # Biases and norms of late KV computations and intermediate predictions are not counted; of 32 channels they matter
    assert decode_bytes(model, output.trace) == pytest.approx(steps.bytes_read, rel=0.02)


@pytest.mark.parametrize(("family", "strategy", "way"), list(cells()), ids=ids)
def test_flops_and_bytes_equal_those_that_torch_runs(tiny, prefill, family, strategy, way):
    compare(tiny(family), strategy, prefill, **WAYS[way])


DRAFTS = [HSD(2, 0, 4), CALM(0.5), StaticDepth(4, keep="bottom"), *HARD[:1]]
DRAFTED = itertools.product(["llama", "gpt2", "opt"], DRAFTS, [None, 20])


@pytest.mark.parametrize(("family", "draft", "vocabulary"), in_turns(DRAFTED, 5), ids=ids)
def test_drafts_and_verifications_count(tiny, prefill, family, draft, vocabulary):
    compare(tiny(family), Verified(draft, 3, draft_vocabulary=vocabulary), prefill, rows=1)


UNLISTED = itertools.product(["olmo", "arcee"], [FullDepth(), CALM(0.5), *HARD])


@pytest.mark.parametrize(("family", "strategy"), in_turns(UNLISTED, 3), ids=ids)
def test_a_family_that_is_not_listed(prefill, family, strategy):
    """Late KV computations run its query projection, too."""
    model = tiny_model(family, head_dim=8, num_key_value_heads=2)
    decode(model, strategy)  # the first decode of an unlisted family is checked, and its head too; both compute more
    compare(model, strategy, prefill, rows=2)


WITH_A_STATE = {"falcon_h1", "granite_hybrid", "jamba", "lfm2", "mamba", "mamba2", "qwen3_next"}
"""The update of a recurrent state is not counted (``decode_flops``), and torch counts parts of it."""


def mechanisms():
    """Strategies on families whose layers hold experts, expand their cache, or repeat keys and values.

    `make test-all` takes all other families too, but those without parts of their own (Gemma 4).
    """
    strategies = [RandomPlan(share=0.5), ChangingPrompt(), CALM(0.5)]
    families = [family for family in MORE_FAMILIES if family not in {*WITH_A_STATE, "gemma4_shared"}]
    for family, strategy in itertools.product([*families, "olmoe"], strategies):
        often = family == "deepseek_v3" or (family in ("falcon_new", "gpt_oss") and strategy is strategies[0])
        yield pytest.param(family, strategy, marks=[] if often else pytest.mark.slow)


@pytest.mark.parametrize(("family", "strategy"), list(mechanisms()), ids=ids)
def test_experts_and_compressed_caches_count_as_torch_runs_them(prefill, family, strategy):
    """One sequence: of several, tokens may be sent to the same experts."""
    model = tiny_model(family, **({"num_experts": 4, "num_experts_per_tok": 2} if family == "olmoe" else {}))
    if getattr(model.config, "num_experts_per_tok", None):
        model.set_experts_implementation("eager")  # torch's counter does not know the fused product of all experts
    decode(model, strategy)  # the first decode of a family that is not listed is checked, and its head too
    compare(model, strategy, prefill, rows=1)


def test_drafts_expand_a_compressed_cache_once_a_pass(prefill):
    model = tiny_model("deepseek_v3", num_layers=3, first_k_dense_replace=3)  # without experts
    compare(model, Verified(HSD(2, 0, 2), 3), prefill, rows=1)


def test_ideal_speedup_is_the_ratio_of_weights_read(tiny):
    model = tiny()
    layer = sum(p.numel() for p in model.model.layers[0].parameters())
    outside = model.lm_head.weight.numel() + model.model.norm.weight.numel()
    assert ideal_speedup(model, [range(6)] * 3) == 1.0
    expected = 2 * (6 * layer + outside) / ((2 * layer + outside) + (1 * layer + outside))
    assert ideal_speedup(model, [[0, 5], [5]]) == pytest.approx(expected)
    attention = sum(p.numel() for p in model.model.layers[0].self_attn.parameters())
    parts = SubLayers([0, 2], [0, 1])
    assert ideal_speedup(model, [parts]) == pytest.approx((6 * layer + outside) / (2 * layer + outside))
    parts = SubLayers([], [0, 1])
    expected = (6 * layer + outside) / (2 * (layer - attention) + outside)
    assert ideal_speedup(model, [parts]) == pytest.approx(expected)
    four = [[0, 5], [0, 5], [0, 5], [5]]  # three texts take the first step, one the second
    assert ideal_speedup(model, [[0, 5], [5], []], taken=[3, 1, 0]) == pytest.approx(ideal_speedup(model, four))
