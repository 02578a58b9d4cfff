"""Encoder-decoder models in the modules: trained on sources and targets apart, and decoded."""

import logging

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from hsdlab import CALM, HSD, FullDepth, SkipDecode, load_model
from hsdlab.data import Example, GenerationDataModule
from hsdlab.modules import DecodeModule, FinetuneModule, LoRA
from hsdlab.modules.deep_supervision import DeepSupervision
from hsdlab.modules.exit_classifier import ExitClassifierModule
from hsdlab.modules.layer_dropout import LayerDropout
from tests.tiny_encoder_decoders import ending_tokenizer, save, tiny_encoder_decoder

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
MIXED = {"skip_strategies": [FullDepth(), HSD(1, 0, 1), SkipDecode(0, 1)], "skip_weights": [1, 2, 1]}
ROW_BY_ROW = {**MIXED, "skip_draws": "example", "distillation": 0.5}
TRAININGS = {
    "full": {},
    "lora": {"lora": LoRA(r=4)},
    "rows": ROW_BY_ROW,
    "deep": {"deep_supervision": DeepSupervision(), "layer_dropout": LayerDropout(0.2)},
}


class Toy(GenerationDataModule):
    """Ten examples, two references each to train on."""

    def __init__(self, **options):
        super().__init__(**{"batch_size": 4, **options})

    def load_examples(self, split):
        number = 10 if split == "train" else 3
        return [Example(f"{split}-{i}", "hello " * (1 + i % 3), (f"hell {i}", "he")) for i in range(number)]


class Losses(Callback):
    """Notes the loss of each step; may stop the run dead after one."""

    def __init__(self, stop_after=None):
        self.stop_after, self.found = stop_after, {}

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_index):
        self.found[trainer.global_step] = outputs["loss"].item()
        if trainer.global_step == self.stop_after:
            raise InterruptedError("killed")


def module(family="t5", **options):
    return FinetuneModule(
        tiny_encoder_decoder(family), ending_tokenizer(), **{"max_new_tokens": 8, "learning_rate": 1e-2, **options}
    )


def trainer(*callbacks, **options):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    options = {"max_epochs": 2, "enable_checkpointing": False, "gradient_clip_val": 1.0, **quiet, **options}
    return Trainer(accelerator="cpu", callbacks=list(callbacks), **options)


@pytest.mark.parametrize("training", TRAININGS)
@pytest.mark.parametrize("family", ["t5", pytest.param("bart", marks=pytest.mark.slow)])
def test_it_learns(family, training):
    run = trainer(losses := Losses(), max_epochs=4)
    run.fit(module(family, **TRAININGS[training]), datamodule=Toy())
    found = list(losses.found.values())
    assert len(found) == 20
    assert sum(found[-5:]) < 0.9 * sum(found[:5])
    assert ("val/skip_loss" in run.callback_metrics) == (training == "rows")


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_the_loss_is_transformers_own_on_labels(family):
    tuned = module(family).eval()
    data = Toy()
    data.connect_to(tuned)
    (batch,) = data.val_dataloader()
    pairs = batch["pairs"]
    labels = pairs["input_ids"].masked_fill(~pairs["target_mask"], -100)[:, 1:].contiguous()
    with torch.no_grad():
        expected = tuned.model(input_ids=pairs["source_ids"], attention_mask=pairs["source_mask"], labels=labels).loss
        torch.testing.assert_close(tuned.loss(pairs), expected)
        skipping = module(family, **MIXED).eval()
        full, skipped = (skipping.loss(pairs, [drawn]) for drawn in (0, 1))
    torch.testing.assert_close(full, expected)
    assert abs(skipped - expected) > 1e-3


def test_a_resumed_run_goes_on_as_if_nothing_had_been(tmp_path):
    trainer(whole := Losses()).fit(module(**ROW_BY_ROW), datamodule=Toy())
    kept = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=1, monitor="step", mode="max")
    with pytest.raises(InterruptedError):
        trainer(kept, Losses(stop_after=3), enable_checkpointing=True).fit(module(**ROW_BY_ROW), datamodule=Toy())
    (checkpoint,) = tmp_path.glob("*.ckpt")
    trainer(rest := Losses()).fit(module(**ROW_BY_ROW), datamodule=Toy(), ckpt_path=checkpoint)
    done = min(rest.found) - 1
    assert 1 <= done <= 3
    assert rest.found == {step: loss for step, loss in whole.found.items() if step > done}


def test_lora_is_on_encoder_and_decoder_and_is_exported(tmp_path):
    save(tiny_encoder_decoder("t5"), tmp_path / "base")
    model, tokenizer = load_model(tmp_path / "base", device="cpu")
    tuned = FinetuneModule(model, tokenizer, max_new_tokens=8, learning_rate=1e-2, lora=LoRA(r=4))
    adapted = {name.split(".lora_A")[0].removeprefix("model.base_model.model.") for name in tuned.trained_names()}
    assert any(name.startswith("encoder.block.2") for name in adapted)
    assert any("decoder.block.2.layer.1.EncDecAttention.k" in name for name in adapted)
    assert not any("lm_head" in name or "relative" in name for name in adapted)
    trainer(max_epochs=1).fit(tuned, datamodule=Toy())
    tuned.export(tmp_path / "adapter")
    merged, _ = load_model(tmp_path / "adapter", device="cpu")
    batch = tokenizer(["hello", "he"], return_tensors="pt", padding=True)
    target = {"decoder_input_ids": torch.tensor([[0, 5], [0, 6]])}
    tuned.eval()
    with torch.no_grad():
        torch.testing.assert_close(
            merged(**batch, **target).logits, tuned.model(**batch, **target).logits, atol=1e-4, rtol=1e-4
        )
        base, _ = load_model(tmp_path / "base", device="cpu")
        assert (merged(**batch, **target).logits - base(**batch, **target).logits).abs().max() > 1e-2


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_decoding_is_the_models_own_under_a_strategy(family):
    model, tokenizer = tiny_encoder_decoder(family), ending_tokenizer()
    for strategy in (FullDepth(), HSD(1, 0, 1), CALM(0.3)):
        decoder = DecodeModule(model, tokenizer, max_new_tokens=6, num_beams=1, metrics=["rouge"])
        run = trainer(strategy)
        records = [each for batch in run.predict(decoder, datamodule=Toy()) for each in batch]
        assert [each["id"] for each in records] == ["test-0", "test-1", "test-2"]
        for record in records:
            alone = tokenizer([record["source"]], return_tensors="pt")
            options = decoder.generation().options
            with strategy.applied_to(model, max_new_tokens=6) as applied:
                ids = model.generate(**alone, **options)[0, 1:]
            if isinstance(strategy, FullDepth):
                assert torch.equal(ids, model.generate(**alone, **options)[0, 1:])
            assert list(record["token_ids"]) == ids[: len(record["token_ids"])].tolist()
            assert record["new_tokens"] == len(record["token_ids"]) == record["decode_steps"] + 1
            assert record["prediction"] == tokenizer.decode(ids, skip_special_tokens=True).strip()
            assert applied.trace.executed.shape[-1] == 3


def test_the_exit_classifier_reads_the_decoders_layers():
    tuned = ExitClassifierModule(tiny_encoder_decoder("t5"), ending_tokenizer(), max_new_tokens=8)
    run = trainer(max_epochs=2)
    run.fit(tuned, datamodule=Toy())
    assert tuned.quality["agreement"].shape == (2,)
    assert run.callback_metrics["val/loss"].isfinite()
