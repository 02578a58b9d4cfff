"""The exit classifier and its file: values by hand, the round trip, and what is refused when a model is met."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from hsdlab import CALM, Compose, FullDepth, generate
from hsdlab.decoding.exit_classifier import ExitClassifier
from hsdlab.testing import prompts


def classifier(width=3):
    made = ExitClassifier(width)
    with torch.no_grad():
        made.weight.copy_(torch.arange(1.0, width + 1)[None])
        made.bias.fill_(-2.0)
    return made


def test_it_is_one_linear_layer():
    hidden = torch.tensor([[1.0, 0.5, 0.0], [0.0, 0.0, 1.0]])
    assert classifier()(hidden).tolist() == [0.0, 1.0]
    torch.testing.assert_close(classifier().confidence(hidden), torch.tensor([0.5, 1 / (1 + torch.e**-1)]))
    assert sum(p.numel() for p in classifier(576).parameters()) == 577
    assert classifier()(hidden.double()).tolist() == [0.0, 1.0]


def test_the_file_holds_two_tensors_and_comes_back(tmp_path):
    classifier().save(tmp_path / "c.safetensors")
    assert {name: t.tolist() for name, t in load_file(tmp_path / "c.safetensors").items()} == {
        "weight": [[1.0, 2.0, 3.0]],
        "bias": [-2.0],
    }
    loaded = ExitClassifier.load(tmp_path / "c.safetensors", hidden_size=3)
    assert torch.equal(loaded.weight, classifier().weight)
    assert not loaded.weight.requires_grad


@pytest.mark.parametrize(
    ("write", "error", "message"),
    [
        (lambda path: None, FileNotFoundError, "there is no such file"),
        (lambda path: path.write_text("hello"), ValueError, "not a safetensors file"),
        (lambda path: save_file({"weight": torch.zeros(1, 32)}, path), ValueError, "holds {'weight'"),
        (lambda path: save_file({"weight": torch.zeros(2, 32), "bias": torch.zeros(2)}, path), ValueError, "holds"),
        (lambda path: ExitClassifier(48).save(path), ValueError, "of width 48; this model's have 32"),
    ],
)
@pytest.mark.parametrize("composed", [False, True])
def test_a_bad_file_is_refused_when_the_strategy_meets_the_model(tiny, tmp_path, write, error, message, composed):
    path = tmp_path / "c.safetensors"
    write(path)
    strategy = CALM(measure="classifier", classifier=str(path))
    if composed:
        strategy = Compose(FullDepth(), strategy)
    with pytest.raises(error, match=message), strategy.applied_to(tiny()):
        pass


def test_a_decode_reads_the_file_as_it_is_then(tiny, tmp_path):
    path = tmp_path / "c.safetensors"
    strategy = CALM(0.6, measure="classifier", classifier=str(path))
    call = {"strategy": strategy, "input_ids": prompts(1)[0], "max_new_tokens": 5, "eos_token_id": None}
    depths = []
    for bias in (-100.0, 100.0):
        always = ExitClassifier(32)
        torch.nn.init.constant_(always.bias, bias)
        always.save(path)
        depths.append(generate(tiny(), **call).trace.average_layers)
    assert depths == [6.0, 1.0]
