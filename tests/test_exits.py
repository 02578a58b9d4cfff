"""The exits of a model and their adapters: one definition in decoding, replay and drafts; their file."""

import json

import pytest
import torch
from safetensors.torch import save

from hsdlab import CALM, HSD, PABEE, Compose, FullDepth, LearnedExit, StaticDepth, UserError, Verified, generate, replay
from hsdlab import testing as laws
from hsdlab.decoding.families import decoder_parts
from hsdlab.exits import FILE, Exits, attach_exits, last_layers
from hsdlab.models import weights_fingerprint
from hsdlab.models.identity import weights_hash
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


@pytest.mark.parametrize(
    ("about", "expected"),
    [
        ({"layers": 3}, "layers=3"),
        ({"layers": []}, "layers=\\[\\]"),
        ({"layers": [3, 1]}, "ascending"),
        ({"layers": [1, 1]}, "ascending"),
        ({"layers": [-1, 3]}, "indices of layers"),
        ({"size": None}, "size=None"),
        ({"rank": 2.0}, "rank=2.0"),
    ],
)
def test_a_file_with_other_content_is_refused(about, expected, tmp_path):
    known = {"layers": [1, 3], "size": 8, "rank": 2, **about}
    state = Exits([1, 3], 8, 2).state_dict()
    (tmp_path / FILE).write_bytes(save(state, metadata={name: json.dumps(value) for name, value in known.items()}))
    with pytest.raises(UserError, match=f"not the file of a model's exits .*{expected}"):
        Exits.load(tmp_path)


def test_adapters_that_are_not_finite_are_refused(tmp_path):
    exits = Exits([1, 3], 8, 2)
    with torch.no_grad():
        exits.adapters["3"].gain[2] = torch.nan
    exits.save(tmp_path)
    with pytest.raises(UserError, match=r"adapters\.3\.gain is not finite"):
        Exits.load(tmp_path)


@pytest.mark.parametrize("identity", [weights_hash, weights_fingerprint])
def test_exits_without_adapters_are_part_of_a_models_identity(identity):
    """No tensor shows them, and a run that resumes with others would mix depths."""

    def with_exits(*layers, rank=None):
        model = laws.tiny_model()
        if layers:
            attach_exits(model, Exits(layers, decoder_parts(model).head_weights[1], rank))
        return identity(model)

    made = [with_exits(), with_exits(1, 3), with_exits(2, 3), with_exits(1, 3, rank=0), with_exits(2, 3, rank=0)]
    assert len(set(made)) == len(made)
    assert with_exits(1, 3) == made[1]


@pytest.mark.parametrize(
    ("confidence", "runs"),
    [
        (CALM(0.5), 0),  # of the model's exits 1 and 3
        (CALM(0.5, probe_layers=[3, 5]), 0),
        (CALM(0.5, probe_layers=5), 0),
        (PABEE(2, probe_layers=[2, 3, 4]), 2),
        (PABEE("auto", probe_layers=1), 3),
    ],
    ids=repr,
)
def test_compose_refuses_a_schedule_without_the_layers_at_which_it_could_exit(confidence, runs):
    """HSD(1, 0, 1) runs the layers 0, 2, 4 and 5 of six, and 5 is the last one."""
    model, options = adapted(layers=(1, 3)), {"input_ids": torch.tensor([[5, 6]]), "max_new_tokens": 4}
    with pytest.raises(UserError, match=rf"could ever exit\. In a step HSD\(.*\) runs {runs} of the layers"):
        generate(model, strategy=Compose(HSD(1, 0, 1), confidence), **options)
    generate(model, strategy=Compose(HSD(0), confidence), **options)
