"""Training of CALM's exit classifier, against what transformers says of its hidden states."""

import pytest
import torch
from lightning.pytorch import Trainer

from hsdlab import CALM, generate
from hsdlab.data import JSONLines
from hsdlab.decoding.families import decoder_parts
from hsdlab.modules import ExitClassifierModule
from hsdlab.modules.frozen_exit import ExitExamples
from hsdlab.testing import tiny_model
from tests.tiny_checkpoints import tiny_llama, tiny_tokenizer
from tests.tiny_runs import write_examples


def module(family="llama", **options):
    return ExitClassifierModule(tiny_model(family), tiny_tokenizer(), max_new_tokens=8, **options)


def batch():
    """Two rows, the second padded on the left; four and three target tokens, so three and two decode steps."""
    return {
        "input_ids": torch.tensor([[5, 6, 7, 8, 9, 10, 11], [1, 1, 12, 13, 14, 15, 16]]),
        "attention_mask": torch.tensor([[1] * 7, [0, 0] + [1] * 5]),
        "target_mask": torch.tensor([[False] * 3 + [True] * 4, [False] * 4 + [True] * 3]),
    }


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_examples_are_the_layers_of_transformers(family):
    trained = module(family)
    found = trained.examples(batch())
    states, agrees = found.states, found.agrees
    assert found.numbers.tolist() == [0, 1, 2, 0, 1]
    model, parts = trained.model, decoder_parts(trained.model)
    with torch.no_grad():
        hidden = []
        for row, (start, steps) in enumerate([(0, [3, 4, 5]), (2, [2, 3])]):  # without padding; inputs of the steps
            given = batch()["input_ids"][row : row + 1, start:]
            out = model(given, output_hidden_states=True)
            hidden += [(torch.stack(out.hidden_states[1:-1])[:, 0, step], out.logits[0, step]) for step in steps]
    expected = torch.stack([layers for layers, _ in hidden])  # (steps, layers - 1, d)
    torch.testing.assert_close(states, expected.float(), atol=1e-5, rtol=1e-5)
    last = torch.stack([logits for _, logits in hidden]).argmax(dim=-1)
    for layer in range(parts.num_layers - 1):
        assert agrees[:, layer].tolist() == (parts.logits(expected[:, layer]).argmax(dim=-1) == last).tolist()


@pytest.fixture
def fitted(tmp_path):
    model = tiny_llama()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trained = ExitClassifierModule(model, tiny_tokenizer(), max_new_tokens=8, learning_rate=0.05)
    data = JSONLines(str(write_examples(tmp_path / "data", number=12)), batch_size=4)
    (tmp_path / "data/train.jsonl").write_text((tmp_path / "data/test.jsonl").read_text())
    trainer = Trainer(
        max_epochs=15,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        accelerator="cpu",
    )
    trainer.fit(trained, datamodule=data)
    return trained, trainer, before


def test_it_learns_and_leaves_the_model_as_it_is(fitted):
    trained, trainer, before = fitted
    assert trainer.callback_metrics["train/loss"] < 0.6  # the classifier without opinion has ln 2 = 0.693
    after = trained.model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert (
        trained.quality["f1"].shape == trained.quality["auroc"].shape == (len(decoder_parts(trained.model).layers) - 1,)
    )
    assert trainer.callback_metrics["val/agreement"] == pytest.approx(float(trained.quality["agreement"].mean()))


def test_a_checkpoint_holds_the_classifier_only(fitted, tmp_path):
    _, trainer, _ = fitted
    trainer.save_checkpoint(tmp_path / "some.ckpt")
    weights = torch.load(tmp_path / "some.ckpt", weights_only=True)["state_dict"]
    assert not [name for name in weights if name.startswith("model.")]
    assert "classifier.weight" in weights


def test_the_folded_classifier_says_the_same(fitted):
    trained, _, _ = fitted
    trained.eval()
    states = torch.randn(5, 3, trained.classifier.hidden_size) * 40 + 7
    torch.testing.assert_close(
        trained.folded()(states.flatten(0, 1)),
        trained.log_odds(ExitExamples(states, None, None)).flatten(),
        rtol=1e-3,
        atol=1e-3,
    )


def test_calm_decodes_with_the_file(fitted, tmp_path):
    trained, _, _ = fitted
    trained.folded().save(tmp_path / "exit_classifier.safetensors")
    strategy = CALM(threshold=0.0, measure="classifier", classifier=str(tmp_path / "exit_classifier.safetensors"))
    out = generate(trained.model, input_ids=torch.tensor([[5, 6, 7]]), strategy=strategy, max_new_tokens=4)
    assert out.trace.average_layers == 1  # every confidence is at least 0


def test_a_batch_without_a_decode_step_has_a_gradient_of_zero():
    trained, rows = module(), batch()
    trained.trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    rows["target_mask"] = torch.zeros_like(rows["target_mask"])
    rows["target_mask"][:, -1] = True
    loss = trained.training_step(rows, 0)
    loss.backward()
    assert loss.item() == 0
    assert trained.classifier.bias.grad.item() == 0


@pytest.mark.parametrize(
    ("options", "message"), [({"learning_rate": 0.0}, "learning_rate=0.0"), ({"max_new_tokens": 1}, "max_new_tokens=1")]
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        ExitClassifierModule(tiny_model(), tiny_tokenizer(), **options)


def test_a_model_of_one_layer():
    with pytest.raises(ValueError, match="nowhere to exit"):
        ExitClassifierModule(tiny_model(num_layers=1), tiny_tokenizer())
