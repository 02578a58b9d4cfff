"""Decodes of one batch share its prefill: the layers run once over the prompt, and nothing else changes."""

import pytest
import torch

from hsdlab import CALM, HSD, FullDepth, OracleExit, generate
from hsdlab import testing as laws
from hsdlab.decoding import shared_prefill as sharing
from hsdlab.decoding.cost import decode_cost
from hsdlab.decoding.shared_prefill import shared_prefill
from hsdlab.testing import decode
from tests.law_cells import by_family
from tests.strategies_for_tests import Changing, RandomPlan

STRATEGIES = [HSD(2, 0, 4), FullDepth(), CALM(0.5), OracleExit(), RandomPlan(), Changing()]


def layers_run_in_prefills(decodes):
    """Calls of a layer in the prefills of several decodes."""
    return sum(count > 0 for each in decodes for count in each.passes.tokens_run[0])


@pytest.mark.parametrize(("family_model", "mode"), by_family(laws.MODES), indirect=["family_model"])
def test_a_prefill_that_is_taken_over_changes_nothing(family_model, mode):
    alone = [decode(family_model, strategy, mode) for strategy in STRATEGIES]
    with shared_prefill():
        sharing = [decode(family_model, strategy, mode) for strategy in STRATEGIES]
    assert layers_run_in_prefills(sharing) == family_model.config.num_hidden_layers
    for here, there in zip(sharing, alone, strict=True):
        assert torch.equal(here.output.sequences, there.output.sequences)
        for a, b in zip(here.logits, there.logits, strict=True):
            assert torch.equal(a, b)
        assert torch.equal(here.output.trace.executed, there.output.trace.executed)
        assert here.output.trace.filled == there.output.trace.filled
        assert here.output.cache_bytes == there.output.cache_bytes
        assert here.passes.tokens_run[1:] == there.passes.tokens_run[1:]


def test_no_prefill_is_shared_outside_of_a_block(tiny):
    model = tiny()
    with shared_prefill():
        decode(model, FullDepth())
    assert layers_run_in_prefills([decode(model, FullDepth())]) == model.config.num_hidden_layers


@pytest.mark.parametrize(
    "other",
    [
        {"rows": torch.tensor([0, 1])},
        {"attention_mask": torch.ones_like(laws.prompts(3)[0])},
        {"mode": "beam"},
        {"max_new_tokens": 20},  # the weights may be multiplied in another layout
        {"output_hidden_states": True},
    ],
    ids=lambda other: next(iter(other)),
)
def test_other_decodes_run_their_own_prefill(tiny, other):
    model = tiny()
    with shared_prefill():
        decodes = [decode(model, FullDepth()), decode(model, FullDepth(), **other)]
    assert layers_run_in_prefills(decodes) == 2 * model.config.num_hidden_layers


class HalfOfThePrompt(HSD):
    """Runs every second layer over the prompt."""

    def scheduled_prompt(self, prompt_length, num_layers):
        return [range(0, num_layers, 2)] * prompt_length


def test_a_strategy_with_a_prompt_schedule_neither_takes_over_nor_records(tiny):
    model, half = tiny(), HalfOfThePrompt(2, 0, 4)
    alone = decode(model, half)
    with shared_prefill():
        decodes = [decode(model, strategy) for strategy in (half, FullDepth(), half, FullDepth())]
    layers = model.config.num_hidden_layers
    assert [layers_run_in_prefills([each]) for each in decodes] == [layers // 2, layers, layers // 2, 0]
    for each in decodes[::2]:
        assert all(torch.equal(a, b) for a, b in zip(each.logits, alone.logits, strict=True))


def test_a_prefill_that_broke_off_is_not_taken_over(tiny):
    model = tiny()
    with shared_prefill():
        with pytest.raises(KeyboardInterrupt), model.model.layers[3].register_forward_hook(interrupt):
            decode(model, FullDepth())
        assert layers_run_in_prefills([decode(model, FullDepth())]) == model.config.num_hidden_layers


def interrupt(*_):
    raise KeyboardInterrupt


def test_only_the_prompts_decoded_last_are_held(tiny):
    model = tiny()
    with shared_prefill():
        for rows in ([0], [1], [2]):
            decode(model, FullDepth(), rows=torch.tensor(rows))
            assert len(sharing._recorded.get()) == 1


def test_the_seconds_of_the_shared_layers_count_for_each_decode(tiny):
    model = tiny()
    with shared_prefill():
        first, second = (decode(model, FullDepth()).output for _ in range(2))
    assert first.timing.taken_over_s == 0
    assert 0 < second.timing.taken_over_s < min(first.timing.prompt_s, second.timing.prompt_s)
    costs = decode_cost(model, first), decode_cost(model, second)
    assert [cost.shared_prompt_passes for cost in costs] == [0, 1]
    assert [cost.prompt_passes for cost in costs] == [1, 1]


def test_prompts_that_the_caller_edits_in_place_are_other_prompts(tiny):
    ids, mask = laws.prompts(3)
    call = {"input_ids": ids, "attention_mask": mask, "strategy": HSD(), "max_new_tokens": 6}
    with torch.no_grad(), shared_prefill():
        generate(tiny(), **call)
        ids[:, -1] = 9
        inside = generate(tiny(), **call)
    assert torch.equal(inside.sequences, generate(tiny(), **call).sequences)


def test_padding_that_transformers_finds_by_itself_is_not_shared(tiny):
    call = {"input_ids": laws.prompts(3)[0], "strategy": HSD(), "max_new_tokens": 6, "eos_token_id": 3}
    with torch.no_grad(), shared_prefill():
        generate(tiny(), **call, pad_token_id=0)
        inside = generate(tiny(), **call, pad_token_id=5)
    assert torch.equal(inside.sequences, generate(tiny(), **call, pad_token_id=5).sequences)
