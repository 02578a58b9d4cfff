"""What LoRA adapts: experts too, and neither routers nor towers; a training step on one family of each mechanism."""

import pytest
import torch
from torch import nn

from hsdlab import UserError, replay
from hsdlab import testing as laws
from hsdlab.models.adapters import merge, read_adapter
from hsdlab.models.merging import few_logits
from hsdlab.modules.lora import LoRA, add_lora

EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2, "num_key_value_heads": 2, "sliding_window": None}
MECHANISMS = {
    "mixtral": ("experts.gate_up_proj", "gate.weight"),
    "deepseek_v3": ("kv_b_proj", "shared_experts.up_proj", "gate.weight"),
    "mistral_window": ("q_proj",),
    "bloom": ("query_key_value",),
}
"""Of each family, names of weights that learn: matrices of experts, routers, the expansion of a compressed cache."""


def tiny(family, **options):
    if family == "deepseek_v3":
        options["first_k_dense_replace"] = 1
    return laws.tiny_model(family, num_layers=3, dtype=torch.float32, **options)


def loss(model):
    """Of a left-padded batch longer than a window, whose last tokens skip the middle layer."""
    input_ids, mask = laws.prompts(3)
    executed = torch.ones(*input_ids.shape, model.config.num_hidden_layers, dtype=torch.bool)
    executed[:, -2:, 1] = False
    logits = replay(model, input_ids=input_ids, attention_mask=mask, executed=executed)[:, :-1]
    labels = input_ids[:, 1:].masked_fill(mask[:, :-1] == 0, -100)
    return nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())


OTHERS = [family for family in (*laws.TINY_FAMILIES, *laws.MORE_FAMILIES) if family not in MECHANISMS]


@pytest.mark.parametrize("lora", [None, LoRA(r=2)], ids=["full", "lora"])
@pytest.mark.parametrize("family", [*MECHANISMS, *(pytest.param(each, marks=pytest.mark.slow) for each in OTHERS)])
def test_a_training_step_lowers_the_loss_and_reaches_each_part(family, lora):
    model = tiny(family) if family in MECHANISMS else laws.tiny_model(family, dtype=torch.float32)
    frozen = {name: weight.clone() for name, weight in model.named_parameters()}
    trained = model if lora is None else add_lora(model, lora)
    learning = {name: weight for name, weight in trained.named_parameters() if weight.requires_grad}
    optimizer = torch.optim.SGD(learning.values(), lr=1e-3)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        losses.append(loss(trained))
        losses[-1].backward()
        optimizer.step()
    assert losses[2] < losses[0]
    arrived = {name for name, weight in learning.items() if weight.grad is not None and weight.grad.abs().max() > 0}
    if lora is None:
        assert all(any(part in name for name in arrived) for part in MECHANISMS.get(family, ()))
        return
    assert all("lora_" in name for name in learning)
    assert arrived == set(learning)
    assert ("experts" in " ".join(arrived)) == any("experts" in name for name in frozen)
    kept = {
        name.replace("base_model.model.", "").replace("base_layer.", ""): w for name, w in trained.named_parameters()
    }
    assert all(torch.equal(kept[name], weight) for name, weight in frozen.items())


@pytest.mark.parametrize("family", ["phimoe", "gpt_oss"])
def test_experts_are_adapted_and_come_back_and_routers_are_left_alone(tmp_path, family):
    """PhiMoE's routers are linear layers, whose output is no tensor."""
    options = EXPERTS if family == "phimoe" else {}
    trained = add_lora(tiny(family, **options), LoRA(r=2)).eval()
    names = [name for name, _ in trained.named_parameters() if "lora_" in name]
    assert not any("router" in name for name in names)
    assert sum("experts" in name for name in names) == 3 * 2 * 2  # layers, parameters, A and B
    with torch.no_grad():
        for name, weight in trained.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.1, generator=torch.Generator().manual_seed(len(name)))
    expected = few_logits(trained)
    assert (expected - few_logits(tiny(family, **options))).abs().max() > 0.1
    trained.save_pretrained(tmp_path)
    merged = merge(tiny(family, **options), read_adapter(str(tmp_path)), tokens=laws.VOCABULARY)
    torch.testing.assert_close(few_logits(merged), expected, rtol=1e-3, atol=1e-3)


def test_towers_beside_the_decoder_are_left_alone():
    model = tiny("mistral_window")
    model.vision_tower = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 32))
    names = [name for name, weight in add_lora(model, LoRA(r=2)).named_parameters() if weight.requires_grad]
    assert len(names) == 3 * 7 * 2  # layers, linear layers of each, A and B
    assert not any("vision_tower" in name for name in names)


def test_experts_take_no_dropout_and_their_share_is_said_where_they_are_left_out():
    with pytest.raises(UserError, match=r"lora_dropout=0.1: peft has no dropout for the experts of MixtralForCausalLM"):
        add_lora(tiny("mixtral"), LoRA(lora_dropout=0.1))
    with pytest.warns(UserWarning, match=r"leaves out the experts of MixtralForCausalLM, 8\d% of its weights"):
        add_lora(tiny("mixtral"), LoRA(target_modules=["q_proj"], lora_dropout=0.1))
