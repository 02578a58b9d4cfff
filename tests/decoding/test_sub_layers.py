"""Attention and MLP apart in a decode: what the laws do not say."""

from itertools import product

import pytest
import torch

from hsdlab import HSD, ScheduledStrategy, SkipStrategy, SubLayers, SubLayerStrategy, generate
from hsdlab.decoding import UnsupportedModelError
from hsdlab.decoding.decisions import Decisions
from hsdlab.decoding.families import decoder_parts
from hsdlab.decoding.forced import forced_mask, layer_schedule
from hsdlab.decoding.layer_parts import check_parts
from hsdlab.decoding.sub_layers import alike, step_layers, step_mask
from hsdlab.testing import decode, law_3_replay, prompts, tiny_model
from tests.law_cells import by_family, ids
from tests.strategies_for_tests import ChangingParts, RandomPlan


class InParts(HSD):
    """HSD, with each of its layers as two parts."""

    def layers_at(self, step, num_layers, max_steps):
        layers = super().layers_at(step, num_layers, max_steps)
        return SubLayers(layers, layers)


class RandomPlanInParts(RandomPlan):
    """RandomPlan, with each of its layers as two parts."""

    def plan(self, state):
        return super().plan(state)[..., None].expand(-1, -1, 2)


class Given(ScheduledStrategy):
    """Runs what it is given in every step."""

    def __init__(self, layers):
        self.layers = layers

    def layers_at(self, step, num_layers, max_steps):
        return self.layers


IN_PARTS = [(HSD(1, 0, 3), InParts(1, 0, 3)), (RandomPlan(0.5), RandomPlanInParts(0.5))]
WAYS = by_family([(mode, *pair) for mode, pair in product(["greedy", "beam", "sampling"], IN_PARTS)])


@pytest.mark.parametrize(("family_model", "mode", "whole", "parts"), WAYS, ids=ids, indirect=["family_model"])
def test_both_parts_of_a_layer_are_the_layer(family_model, mode, whole, parts):
    here, there = decode(family_model, parts, mode), decode(family_model, whole, mode)
    assert torch.equal(here.output.sequences, there.output.sequences)
    assert torch.equal(torch.stack(here.logits), torch.stack(there.logits))
    assert here.passes.tokens_attended == there.passes.tokens_attended
    assert here.passes.tokens_late == there.passes.tokens_late
    assert here.output.trace.executed.shape == (*there.output.trace.executed.shape, 2)
    assert here.output.trace.average_layers == there.output.trace.average_layers
    assert here.output.cache_bytes == there.output.cache_bytes


def test_a_layer_without_attention_has_no_cache_and_owes_nothing(tiny):
    text = dict(zip(("input_ids", "attention_mask"), prompts(3), strict=True))
    full, none = (
        generate(tiny(), **text, strategy=SubLayerStrategy(skipped), max_new_tokens=8) for skipped in ([], [1, 3, 4])
    )
    assert none.cache_bytes == full.cache_bytes / 2
    assert none.trace.filled == 0


class ThreeKinds(SkipStrategy):
    """One row runs whole layers, one attention alone, one MLPs alone."""

    def plan(self, state):
        kinds = torch.tensor([[True, True], [True, False], [False, True]])
        return kinds[:, None].expand(3, state.num_layers, 2)


@pytest.mark.parametrize(
    ("strategy", "calls"), [(SubLayerStrategy([1], [2]), 1), (ThreeKinds(), 3)], ids=["all", "own"]
)
def test_rows_that_run_the_same_parts_share_a_call(strategy, calls):
    model, seen = tiny_model(), []
    check_parts(decoder_parts(model))  # runs each layer twice, once for each model
    for layer in model.model.layers:
        layer.input_layernorm.register_forward_hook(lambda module, args, output: seen.append(output))
    out = decode(model, strategy, max_new_tokens=2, eos_token_id=None).output
    assert len(seen) == 6 + 6 * calls  # of the prefill and of one decode step
    assert out.trace.executed.shape == (1, 3, 6, 2)


class Asked(SkipStrategy):
    """Runs sub-layers, and notes after which of them it was asked about an exit."""

    def __init__(self):
        self.states = []

    def plan(self, state):
        plan = torch.ones(state.rows, state.num_layers, 2, dtype=torch.bool)
        plan[:, 1, 0] = plan[:, 2, 1] = plan[1, 3, 0] = plan[2, 3] = plan[:, 4] = False
        return plan

    def should_exit(self, state):
        self.states.append(state)
        return torch.zeros(len(state.rows), dtype=torch.bool)


def test_an_exit_may_follow_every_layer_of_which_a_part_ran(tiny):
    strategy = Asked()
    with strategy.applied_to(tiny()):
        tiny().generate(prompts(3)[0], attention_mask=prompts(3)[1], max_new_tokens=2)
    asked = [(state.layer, state.layers_run, state.rows.tolist()) for state in strategy.states]
    assert asked == [(0, 1, [0, 1, 2]), (1, 2, [0, 1, 2]), (2, 3, [0, 1, 2]), (3, 4, [0, 1])]
    for before, after in zip(strategy.states, strategy.states[1:], strict=False):
        assert torch.equal(after.previous_output, before.output[: len(after.rows)])
        assert not torch.isclose(after.output, after.previous_output).all(dim=1).any()


def test_whole_layers_are_called_as_they_are(tiny, monkeypatch):
    monkeypatch.setattr("hsdlab.decoding.layer_parts._before_modules", lambda *args: 1 / 0)
    decode(tiny(), RandomPlan(0.5))


class SkipsInThePrompt(ChangingParts):
    """Sub-layers in the decode steps, whole layers in the prompt."""

    def scheduled_prompt(self, length, num_layers):
        return [[0, 2, 5]] * (length - 1) + [range(num_layers)]


@pytest.mark.parametrize("mode", ["greedy", "beam"])
def test_a_prompt_schedule_goes_with_sub_layers(tiny, mode):
    law_3_replay(tiny(), SkipsInThePrompt(), mode)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (SubLayers([], []), "Given runs no attention and no MLP in step 0; expected at least one"),
        (SubLayers([0], [6]), r"Given runs layers \[6\] in step 0; this model has layers 0 to 5"),
        (SubLayers([0.5], []), r"Given runs layers \[0.5\] in step 0"),
        (SubLayers(3, []), "Given gave a int as the layers of step 0"),
    ],
)
def test_sub_layers_that_a_model_does_not_have(layers, message):
    with pytest.raises(ValueError, match=message):
        Decisions(Given(layers), num_layers=6, max_steps=4)


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (torch.ones(3, 6, 3, dtype=torch.bool), r"shape \(3, 6\): rows × layers, or \(3, 6, 2\) for attention and MLP"),
        (torch.zeros(3, 6, 2, dtype=torch.bool), r"runs no layer for sequences \[0, 1, 2\] in step 0"),
    ],
)
def test_plans_that_are_none(tiny, plan, message):
    class Planned(SkipStrategy):
        def plan(self, state):
            return plan

    with pytest.raises(ValueError, match=message):
        decode(tiny(), Planned())


def test_a_norm_after_the_residual_connection_is_refused_before_anything_is_decoded():
    model = tiny_model("opt", do_layer_norm_before=False)
    seen = []
    model.register_forward_hook(lambda *args: seen.append(1))
    with pytest.raises(UnsupportedModelError, match="The attention and the MLP of OPTForCausalLM cannot be skipped"):
        decode(model, SubLayerStrategy())
    assert not seen
    decode(model, HSD(1, 0, 3))  # whole layers can be skipped


def test_masks_of_a_schedule_in_parts():
    schedule = layer_schedule(Given(SubLayers([0, 2], [1])), num_layers=3, max_steps=3)
    mixed = schedule.steps
    assert mixed.tolist() == [[[True, False], [False, True], [True, False]]] * 2 + [[[True, True]] * 3]
    new_tokens = torch.tensor([[False, True, True], [False, False, True]])
    forced = forced_mask([schedule], new_tokens, torch.ones(2, 3))
    assert forced.shape == (2, 3, 3, 2)
    assert forced[~new_tokens].all()
    assert torch.equal(forced[new_tokens], torch.stack([mixed[0], mixed[1], mixed[0]]))


@pytest.mark.parametrize("layers", [[0, 2], SubLayers([0, 2], [1]), SubLayers([], [2])])
def test_layers_of_a_step_as_a_mask_and_back(layers):
    assert step_layers(step_mask(layers, 3)) == layers


def test_masks_are_brought_into_the_same_form():
    whole, parts = torch.tensor([True, False]), torch.tensor([[True, False], [False, True]])
    assert alike([whole, whole], dims=1)[1] is whole
    made = alike([whole, parts], dims=1)
    assert made[0].tolist() == [[True, True], [False, False]]
    assert made[1] is parts
