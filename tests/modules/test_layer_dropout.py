"""Layer dropout: each example of a training batch skips layers at the rates of a profile."""

import copy

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from hsdlab.data.batches import Pair, collate_pairs
from hsdlab.modules import LayerDropout, LoRA
from hsdlab.testing import watched
from tests.modules.test_finetune import Recorder, Toy, module, trainer

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


@pytest.mark.parametrize(
    ("profile", "expected"),
    [
        ("exponential", [0, 0.2 * (2**0.25 - 1), 0.2 * (2**0.5 - 1), 0.2 * (2**0.75 - 1), 0.2]),
        ("linear", [0, 0.05, 0.1, 0.15, 0.2]),
        ("uniform", [0.2] * 5),
    ],
)
def test_layers_are_skipped_as_often_as_the_profile_says(profile, expected):
    dropout = LayerDropout(0.2, profile)
    assert dropout.rates(5).tolist() == pytest.approx(expected)
    torch.manual_seed(0)
    executed = dropout.draw(torch.zeros(20_000, 3, dtype=torch.long), num_layers=5)
    assert executed.shape == (20_000, 3, 5)
    assert (executed == executed[:, :1]).all()  # a layer is skipped by a whole example
    assert (~executed[:, 0]).float().mean(dim=0).tolist() == pytest.approx(expected, abs=0.01)  # 3.5 standard errors
    both = (~executed[:, 0, -1] & ~executed[:, 0, -2]).float().mean()
    assert both == pytest.approx(expected[-1] * expected[-2], abs=0.01)  # each layer by itself


def batch_of_pairs():
    return collate_pairs([Pair([7, 8, 9], [10, 11]), Pair([12], [13, 14, 15]), Pair([17, 18], [1])], 0)


def test_an_example_is_computed_by_a_model_without_its_skipped_layers():
    batch, tested = batch_of_pairs(), module(layer_dropout=LayerDropout(0.5, "uniform"))
    for seed in range(5):
        torch.manual_seed(seed)
        logits = tested.training_logits(batch)
        torch.manual_seed(seed)
        executed = tested.layer_dropout.draw(batch["input_ids"], num_layers=3)[:, 0]  # (rows, layers)
        for row, runs in enumerate(executed):
            shorter = copy.deepcopy(tested.model)
            shorter.model.layers = nn.ModuleList(
                layer for layer, run in zip(shorter.model.layers, runs, strict=True) if run
            )
            text = batch["input_ids"][row][batch["attention_mask"][row].bool()]
            expected = shorter(text[None], use_cache=False).logits[0]
            torch.testing.assert_close(logits[row, -len(text) :], expected[-logits.shape[1] :], atol=1e-4, rtol=0)


def test_a_layer_that_no_example_uses_is_not_called():
    batch, tested, numbers = batch_of_pairs(), module(layer_dropout=LayerDropout(0.6, "uniform")), set()
    for seed in range(20):
        torch.manual_seed(seed)
        with watched(tested.model) as (_, calls):
            tested.training_logits(batch)
        torch.manual_seed(seed)
        used = tested.layer_dropout.draw(batch["input_ids"], num_layers=3).any(dim=0).any(dim=0)
        assert [tokens > 0 for tokens in calls[0]] == used.tolist()
        numbers.add(int(used.sum()))
    assert {2, 3} <= numbers


@pytest.mark.parametrize("lora", [None, LoRA(r=4)], ids=["full", "lora"])
def test_a_rate_of_0_is_plain_training_bit_for_bit(lora):
    runs = []
    for options in ({}, {"layer_dropout": LayerDropout(0.0)}):
        trained = module(lora=lora, **options)
        trainer(recorder := Recorder(), max_epochs=2).fit(trained, datamodule=Toy())
        runs.append((recorder.steps, trained.state_dict()))
    assert runs[0][0] == runs[1][0]
    assert all(torch.equal(weight, runs[1][1][name]) for name, weight in runs[0][1].items())


def test_validation_and_export_are_at_full_depth(tmp_path):
    trained = module(layer_dropout=LayerDropout(0.5, "uniform"))
    before = [type(layer) for layer in trained.model.model.layers]
    run = trainer(recorder := Recorder(), max_epochs=4)
    run.fit(trained, datamodule=Toy())
    losses = [loss for loss, _, _ in recorder.steps.values()]
    assert sum(losses[-6:]) < 0.7 * sum(losses[:6])
    assert [type(layer) for layer in trained.model.model.layers] == before
    logged = run.callback_metrics["val/loss"]
    trained.layer_dropout = None
    (plain,) = trainer().validate(trained, datamodule=Toy(), verbose=False)
    assert logged == pytest.approx(plain["val/loss"], rel=1e-6)
    trained.export(tmp_path)
    exported = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    text = torch.arange(4, 20)[None]
    assert torch.equal(exported(text).logits, trained.model.eval()(text).logits)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate": -0.1}, r"layer_dropout\.rate=-0\.1: expected 0 or more, and less than 1"),
        ({"rate": 1.0}, r"layer_dropout\.rate=1\.0: expected 0 or more, and less than 1"),
        ({"profile": "cosine"}, r"layer_dropout\.profile='cosine': expected exponential, linear or uniform"),
    ],
)
def test_parameters_are_checked_in_the_users_words(options, message):
    with pytest.raises(ValueError, match=message):
        LayerDropout(**options)
