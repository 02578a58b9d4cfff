"""The exits of a model and their adapters: one definition in decoding, replay and drafts; their file."""

import pytest
import torch

from hsdlab import CALM, HSD, Compose, FullDepth, LearnedExit, StaticDepth, UserError, Verified, generate, replay
from hsdlab import testing as laws
from hsdlab.decoding.families import decoder_parts
from hsdlab.exits import FILE, Exits, attach_exits, last_layers
from tests.law_cells import ROUTER

DECIDED = [
    CALM(0.4),
    CALM(0.4, late_exit=True, exit_rule="source_mean"),
    LearnedExit(ROUTER),
    StaticDepth(4, keep="bottom"),
    Compose(HSD(1, 0, 4), CALM(0.3, probe_layers=1, check_vocabulary=40)),
]


def adapted(family="llama", layers=(1, 2, 3), rank=4):
    """A tiny model whose adapters change the predictions."""
    model = laws.tiny_model(family, dtype=torch.float64)
    exits = Exits(layers, decoder_parts(model).head_weights[1], rank)
    with torch.no_grad():
        for index, weight in enumerate(exits.parameters()):
            weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(index)) * 0.3)
    attach_exits(model, exits.requires_grad_(False))
    return model


@pytest.fixture(scope="module", params=["llama", pytest.param("opt", marks=pytest.mark.slow)])
def model(request):
    return adapted(request.param)


@pytest.mark.parametrize("mode", ["greedy", pytest.param("beam", marks=pytest.mark.slow)])
@pytest.mark.parametrize("strategy", DECIDED, ids=repr)
def test_the_laws_hold(model, strategy, mode):
    remembered = laws.RememberedDecodes()
    for law in (laws.law_3_replay, laws.law_7_rows):
        if laws.not_applicable(law, strategy, mode) is None:
            law(model, strategy, mode, remembered)


def test_a_token_is_that_of_the_adapter_of_its_last_layer(model):
    """By hand, from the states of the layers: exit after layer 2 for all new tokens but the first."""
    input_ids, mask = laws.prompts(3)
    parts, states = decoder_parts(model), []
    out = generate(
        model,
        input_ids=input_ids,
        attention_mask=mask,
        strategy=StaticDepth(3, keep="bottom"),
        max_new_tokens=2,
        output_scores=True,
        eos_token_id=None,
    )
    hook = parts.layers[2].register_forward_hook(
        lambda *a: states.append(a[-1][0] if isinstance(a[-1], tuple) else a[-1])
    )
    whole = torch.cat([mask, torch.ones(3, 2, dtype=torch.long)], dim=1)
    executed = out.trace.mask(input_ids.shape[1])
    replayed = replay(model, input_ids=out.sequences, attention_mask=whole, executed=executed)
    hook.remove()
    state = states[0][:, -2]
    for module in parts.after_layers:
        state = module(state)
    adapter = parts.exits.adapters["2"]
    by_hand = parts.head(state * (1 + adapter.gain) + state @ adapter.down.T @ adapter.up.T)
    torch.testing.assert_close(replayed[:, -2], by_hand, rtol=0, atol=1e-9)
    torch.testing.assert_close(out.scores[1], by_hand.float(), rtol=0, atol=1e-4)
    assert (parts.head(state) - by_hand).abs().max() > 0.1


def test_full_depth_is_the_model_without_exits(model):
    input_ids, mask = laws.prompts(3)
    text = {"input_ids": input_ids, "attention_mask": mask}
    plain = laws.tiny_model(model.config.model_type, dtype=torch.float64).generate(**text, max_new_tokens=6)
    assert torch.equal(generate(model, **text, strategy=FullDepth(), max_new_tokens=6).sequences, plain)
    assert torch.equal(generate(model, **text, strategy=Verified(CALM(0.3)), max_new_tokens=6).sequences, plain)


def test_strategies_check_at_the_exits_unless_told_otherwise():
    model, strategy = adapted(layers=(1, 4), rank=None), CALM(1e-9)
    input_ids, _ = laws.prompts(1)
    for tested, depth in ((strategy, 2), (CALM(1e-9, probe_layers=1), 1), (Compose(HSD(1, 0, 2), strategy), 3)):
        out = generate(model, input_ids=input_ids, strategy=tested, max_new_tokens=4, eos_token_id=None)
        assert out.trace.average_layers == depth, tested
    with CALM(0.5).applied_to(laws.tiny_model()):
        pass


@pytest.mark.parametrize("rank", [None, 0, 2])
def test_they_are_read_back(rank, tmp_path):
    exits = Exits([1, 3], 8, rank)
    with torch.no_grad():
        for weight in exits.parameters():
            weight.normal_()
    exits.save(tmp_path)
    again = Exits.load(tmp_path)
    assert (again.layers, again.size, again.rank) == ((1, 3), 8, rank)
    assert all(torch.equal(a, b) for a, b in zip(exits.parameters(), again.parameters(), strict=True))
    assert Exits.load(tmp_path / "elsewhere") is None
    with pytest.raises(UserError, match="another model's"):
        attach_exits(laws.tiny_model(), again)
    (tmp_path / FILE).write_bytes(b"no tensors")
    with pytest.raises(UserError, match="not the file of a model's exits"):
        Exits.load(tmp_path)


def test_last_layers():
    executed = torch.tensor([[True, False, True, False], [True, True, True, True], [False] * 4])
    assert last_layers(executed).tolist() == [2, 3, 3]
