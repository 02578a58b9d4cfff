"""``replay`` on its own: what it refuses, and that it can be trained through."""

import pytest
import torch
from torch import distributed

from hsdlab import replay
from hsdlab.decoding.families import position_ids
from hsdlab.testing import prompts, tiny_model, watched
from tests.reference import slow


def test_equals_plain_hooks_for_any_mask(family_model):
    input_ids, mask = prompts(3)
    executed = torch.rand(3, 5, 6, generator=torch.Generator().manual_seed(0)) < 0.5
    with torch.no_grad():
        here = replay(family_model, input_ids=input_ids, attention_mask=mask, executed=executed)
    there = slow.masked_logits(family_model, input_ids, mask, executed)
    real = mask.bool()
    torch.testing.assert_close(here[real], there[real], rtol=0, atol=1e-9)


@pytest.mark.parametrize("start", [1, 2, 4])  # of three rows, one or two are all padding in a past of 1
def test_past_continues_a_text(family_model, start):
    input_ids, mask = prompts(3)
    executed = torch.rand(3, 5, 6, generator=torch.Generator().manual_seed(0)) < 0.5
    executed[:, :start] = True
    text = {"input_ids": input_ids[:, start:], "attention_mask": mask, "executed": executed[:, start:]}
    with torch.no_grad():
        past = family_model(
            input_ids[:, :start], attention_mask=mask[:, :start], position_ids=position_ids(mask)[:, :start]
        ).past_key_values
        whole = replay(family_model, input_ids=input_ids, attention_mask=mask, executed=executed)
        for _ in range(2):  # past is left as it is
            rest = replay(family_model, **text, past=past)
            real = mask[:, start:].bool()
            torch.testing.assert_close(rest[real], whole[:, start:][real], rtol=0, atol=1e-9)


def test_a_mask_that_leaves_out_the_past_is_refused(tiny):
    input_ids, mask = prompts(3)
    past = tiny()(input_ids[:, :2]).past_key_values
    with pytest.raises(ValueError, match=r"shape \(3, 3\); expected \(3, 5\)"):
        replay(
            tiny(),
            input_ids=input_ids[:, 2:],
            attention_mask=mask[:, 2:],
            executed=torch.ones(3, 3, 6, dtype=torch.bool),
            past=past,
        )


def test_gradients_reach_the_layers_that_ran_and_no_other(tiny):
    model = tiny_model()
    input_ids, _ = prompts(1)
    executed = torch.ones(1, 5, 6, dtype=torch.bool)
    executed[:, :, [1, 4]] = False
    replay(model, input_ids=input_ids, executed=executed).square().sum().backward()
    touched = [layer.mlp.down_proj.weight.grad is not None for layer in model.model.layers]
    assert touched == [True, False, True, True, False, True]


def test_with_several_processes_an_unused_layer_gets_a_gradient_of_zero(tiny):
    input_ids, _ = prompts(1)
    executed = torch.ones(1, 5, 6, dtype=torch.bool)
    executed[:, :, [1, 4]] = False
    model, alone = tiny_model(), replay(tiny_model(), input_ids=input_ids, executed=executed)
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        logits = replay(model, input_ids=input_ids, executed=executed)
        logits.square().sum().backward()
        with torch.no_grad(), watched(model) as (_, called):
            replay(model, input_ids=input_ids, executed=executed)
    finally:
        distributed.destroy_process_group()
    assert torch.equal(logits, alone)
    sizes = [layer.mlp.down_proj.weight.grad.abs().sum().item() for layer in model.model.layers]
    assert [size > 0 for size in sizes] == [True, False, True, True, False, True]
    assert called == [[5, 0, 5, 5, 0, 5]]  # scoring calls no layer in vain


@pytest.mark.parametrize("executed", [torch.ones(3, 5, 5, dtype=torch.bool), torch.ones(3, 5, 6)])
def test_a_mask_of_another_shape_or_type_is_refused(tiny, executed):
    with pytest.raises(ValueError, match=r"expected a BoolTensor of shape \(3, 5, 6\)"):
        replay(tiny(), input_ids=prompts(3)[0], executed=executed)


def test_activation_checkpointing_is_refused_while_training():
    model = tiny_model().train()
    model.activation_checkpointing_enable()
    with pytest.raises(ValueError, match="activation_checkpointing_disable"):
        replay(model, input_ids=prompts(1)[0], executed=torch.ones(1, 5, 6, dtype=torch.bool))
