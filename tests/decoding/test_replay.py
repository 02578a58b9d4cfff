"""``replay`` on its own: what it refuses, and that it can be trained through."""

import pytest
import torch
from torch import distributed

from hsdlab import replay
from hsdlab.decoding import UnsupportedModelError
from hsdlab.decoding.families import attention, decoder_parts, feed_forward, position_ids
from hsdlab.decoding.layer_parts import check_parts
from hsdlab.testing import prompts, tiny_model, watched
from hsdlab.testing.snapshot import snapshot
from tests.reference import slow


def test_equals_plain_hooks_for_any_mask(family_model):
    input_ids, mask = prompts(3)
    executed = torch.rand(3, 5, 6, generator=torch.Generator().manual_seed(0)) < 0.5
    with torch.no_grad():
        here = replay(family_model, input_ids=input_ids, attention_mask=mask, executed=executed)
    there = slow.masked_logits(family_model, input_ids, mask, executed)
    real = mask.bool()
    torch.testing.assert_close(here[real], there[real], rtol=0, atol=1e-9)


def test_attention_and_mlp_are_masked_apart(family_model):
    input_ids, mask = prompts(3)
    executed = torch.rand(3, 5, 6, 2, generator=torch.Generator().manual_seed(0)) < 0.5
    executed[:, :, 1, 0] = executed[:, :, 2, 1] = executed[:, :, 3] = False  # parts that no token runs
    executed[:, :, 4, 0] = executed[:, :, 5, 1] = True  # and some that all do
    with torch.no_grad():
        here = replay(family_model, input_ids=input_ids, attention_mask=mask, executed=executed)
    there = slow.masked_logits(family_model, input_ids, mask, executed)
    real = mask.bool()
    torch.testing.assert_close(here[real], there[real], rtol=0, atol=1e-9)


def test_both_parts_are_the_whole_layer(family_model):
    input_ids, mask = prompts(3)
    executed = torch.rand(3, 5, 6, generator=torch.Generator().manual_seed(0)) < 0.5
    text = {"input_ids": input_ids, "attention_mask": mask}
    with torch.no_grad():
        whole = replay(family_model, **text, executed=executed)
        parts = replay(family_model, **text, executed=executed[..., None].expand(-1, -1, -1, 2))
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-12)


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


def test_a_part_that_no_token_runs_is_not_called_and_gets_no_gradient(family_model):
    model = tiny_model(family_model.config.model_type)
    input_ids, _ = prompts(1)
    executed = torch.ones(1, 5, 6, 2, dtype=torch.bool)
    executed[:, :, 1, 0] = executed[:, :, 4, 1] = executed[:, 0, 2, 0] = executed[:, 0, 3, 1] = False
    with watched(model) as passes:
        replay(model, input_ids=input_ids, executed=executed).square().sum().backward()
    assert passes.tokens_attended == [[5, 0, 5, 5, 5, 5]]
    assert passes.tokens_run == [[5, 5, 5, 5, 0, 5]]
    layers = decoder_parts(model).layers
    assert [_has_gradient(attention(layer)) for layer in layers] == [True, False, True, True, True, True]
    assert [_has_gradient(feed_forward(layer)) for layer in layers] == [True, True, True, True, False, True]


def _has_gradient(module):
    return any(weight.grad is not None for weight in module.parameters())


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


def test_with_several_processes_an_unused_part_gets_a_gradient_of_zero(tiny):
    input_ids, _ = prompts(1)
    executed = torch.ones(1, 5, 6, 2, dtype=torch.bool)
    executed[:, :, 1, 0] = executed[:, :, 4, 1] = False
    model, alone = tiny_model(), replay(tiny_model(), input_ids=input_ids, executed=executed)
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        logits = replay(model, input_ids=input_ids, executed=executed)
        logits.square().sum().backward()
    finally:
        distributed.destroy_process_group()
    assert torch.equal(logits, alone)
    assert model.model.layers[1].self_attn.o_proj.weight.grad.abs().sum() == 0
    assert model.model.layers[4].mlp.down_proj.weight.grad.abs().sum() == 0


@pytest.mark.parametrize(
    "executed",
    [
        torch.ones(3, 5, 5, dtype=torch.bool),
        torch.ones(3, 5, 6),
        torch.ones(3, 5, 6, 3, dtype=torch.bool),
        torch.ones(3, 5, 6, 2),
    ],
)
def test_a_mask_of_another_shape_or_type_is_refused(tiny, executed):
    with pytest.raises(ValueError, match=r"expected a BoolTensor of shape \(3, 5, 6\)"):
        replay(tiny(), input_ids=prompts(3)[0], executed=executed)


def test_activation_checkpointing_is_refused_while_training():
    model = tiny_model().train()
    model.activation_checkpointing_enable()
    with pytest.raises(ValueError, match="activation_checkpointing_disable"):
        replay(model, input_ids=prompts(1)[0], executed=torch.ones(1, 5, 6, dtype=torch.bool))


def test_a_norm_after_the_residual_connection_is_refused_in_parts():
    model = tiny_model("opt", do_layer_norm_before=False)
    message = "attention and the MLP of OPTForCausalLM cannot be skipped apart: layers .0, 1, 2, 3, 4, 5. change"
    with pytest.raises(UnsupportedModelError, match=message):
        replay(model, input_ids=prompts(1)[0], executed=torch.ones(1, 5, 6, 2, dtype=torch.bool))


def test_the_check_of_parts_leaves_the_model_as_it_was(family_model):
    model = tiny_model(family_model.config.model_type)
    before = snapshot(model)
    with watched(model) as passes:
        check_parts(decoder_parts(model))
    assert passes.tokens_attended == passes.tokens_run == []
    assert snapshot(model) == before
