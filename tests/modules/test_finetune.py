"""FinetuneModule in a Trainer, on tiny models: learning, resuming, exporting, refusing."""

import copy
import logging
import math
import re
import shutil
import warnings
from typing import get_args

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from peft import LoraConfig, PeftModel
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from hsdlab import CALM, HSD, FullDepth, SkipDecode, UserError, load_model
from hsdlab.data import Example, GenerationDataModule
from hsdlab.modules import FinetuneModule, LoRA
from hsdlab.modules.lora import described
from hsdlab.modules.optimizer import LearningRateSchedule, adamw
from tests.tiny_checkpoints import save, tiny_gpt2, tiny_llama, tiny_tokenizer

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
MIXED = {"skip_strategies": [FullDepth(), HSD(1, 0, 1), SkipDecode(0, 1)], "skip_weights": [1, 2, 1]}
ROW_BY_ROW = {**MIXED, "final_skip_weights": [1, 1, 3], "skip_draws": "example", "distillation": 0.5}


class Toy(GenerationDataModule):
    """Eleven examples with two references each: six batches of four pairs."""

    def __init__(self, letter="e", **kwargs):
        super().__init__(**{"batch_size": 4, **kwargs})
        self.letter = letter

    def load_examples(self, split):
        number = 11 if split == "train" else 3
        return [Example(f"{split}-{i}", "hello " * (1 + i % 3), (f"h{self.letter}ll {i}", "he")) for i in range(number)]


class Recorder(Callback):
    """Notes every step; may stop the run dead after one."""

    def __init__(self, stop_after=None):
        self.stop_after = stop_after
        self.steps = {}

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_index):
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        number = trainer.global_step - 1
        self.steps[number] = (outputs["loss"].item(), rate, batch["input_ids"].tolist())
        if number == self.stop_after:
            raise InterruptedError("killed")


def module(model=None, **options):
    options = {"max_new_tokens": 6, "learning_rate": 1e-2, **options}
    return FinetuneModule(model or tiny_llama(), tiny_tokenizer(), **options)


def trainer(*callbacks, **options):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    options = {"max_epochs": 3, "enable_checkpointing": False, "gradient_clip_val": 1.0, **quiet, **options}
    return Trainer(accelerator="cpu", callbacks=list(callbacks), **options)


@pytest.mark.parametrize(
    "options", [{}, {"lora": LoRA(r=4)}, MIXED, ROW_BY_ROW], ids=["full", "lora", "batches", "rows"]
)
@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
def test_it_learns_and_logs(make, options):
    run = trainer(recorder := Recorder(), max_epochs=5)
    run.fit(module(make(), **options), datamodule=Toy())
    losses = [loss for loss, _, _ in recorder.steps.values()]
    assert len(losses) == 30
    assert sum(losses[-6:]) < 0.7 * sum(losses[:6])
    logged = run.callback_metrics
    assert ("val/skip_loss" in logged) == ("skip_strategies" in options)
    assert logged.get("val/skip_loss", 0.0) != logged["val/loss"]
    assert logged["val/perplexity"] == pytest.approx(math.exp(logged["val/loss"]))
    assert logged["train/learning_rate"] == 0.0
    assert logged["train/tokens_per_second"] > 0


def test_validation_loss_weighs_each_token_the_same():
    class First(Toy):
        def load_examples(self, split):
            return [Example("a", "hello", ("hello hello hello",)), Example("b", "hello", ("h",))]

    run, tested = trainer(), module(max_new_tokens=20)
    (logged,) = run.validate(tested, datamodule=First(batch_size=1), verbose=False)
    (together,) = trainer().validate(tested, datamodule=First(batch_size=2), verbose=False)
    assert logged["val/loss"] == pytest.approx(together["val/loss"], rel=1e-5)


def test_only_loras_matrices_are_trained():
    tested = module(lora=LoRA(r=4))
    before = {name: weight.clone() for name, weight in tested.named_parameters()}
    trainer(max_epochs=1).fit(tested, datamodule=Toy())
    changed = {name for name, weight in tested.named_parameters() if not torch.equal(weight, before[name])}
    assert changed
    assert all("lora_" in name for name in changed)
    assert all(part.training for part in tested.model.modules())  # from_pretrained gives them in eval mode


def last(folder, every=3):
    return ModelCheckpoint(folder, filename="last", every_n_train_steps=every, enable_version_counter=False)


@pytest.fixture(scope="module")
def whole_run():
    """Steps of a run that nothing cuts short: LoRA with dropout, skip-aware."""
    trainer(recorder := Recorder()).fit(module(lora=LoRA(r=4, lora_dropout=0.2), **ROW_BY_ROW), datamodule=Toy())
    return recorder.steps


@pytest.mark.parametrize("killed_after", [3, 5, 9, 12], ids=lambda step: f"step-{step}")  # 6 batches an epoch
def test_a_killed_run_goes_on_to_the_same_losses(tmp_path, whole_run, killed_after):
    def start(recorder, checkpoint=None):
        run = trainer(recorder, last(tmp_path), enable_checkpointing=True)
        run.fit(module(lora=LoRA(r=4, lora_dropout=0.2), **ROW_BY_ROW), datamodule=Toy(), ckpt_path=checkpoint)

    before, after = Recorder(killed_after), Recorder()
    with pytest.raises(InterruptedError):
        start(before)
    start(after, "last")
    assert min(after.steps) == killed_after // 3 * 3  # the last checkpoint
    assert max(after.steps) == 17
    assert {*before.steps, *after.steps} == set(whole_run)
    for steps in (before.steps, after.steps):
        for number, (loss, rate, rows) in steps.items():
            assert rows == whole_run[number][2]
            assert rate == whole_run[number][1]
            assert loss == pytest.approx(whole_run[number][0], abs=1e-6)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """The folder of an adapter, trained on a base model that is saved beside it."""
    folder = tmp_path_factory.mktemp("adapter")
    save(tiny_llama(), folder / "base")
    model, _ = load_model(folder / "base", device="cpu")
    trained = module(model, lora=LoRA(r=4, lora_alpha=12))
    trainer().fit(trained, datamodule=Toy())
    trained.export(folder / "adapter")
    return folder / "adapter"


def continued(adapter, **options):
    model, _ = load_model(adapter.parent / "base", device="cpu")
    return module(model, initial_adapter=str(adapter), **options)


def test_an_adapter_is_trained_further(adapter, tmp_path):
    tested = continued(adapter)
    assert (tested.lora.r, tested.lora.lora_alpha) == (4, 12)
    expected, _ = load_model(adapter, device="cpu")
    ids = torch.arange(1, 9)[None]
    with torch.no_grad():
        torch.testing.assert_close(tested.model(input_ids=ids).logits, expected(input_ids=ids).logits)
    trainer(max_epochs=1).fit(tested, datamodule=Toy())
    tested.export(tmp_path / "further")
    further, _ = load_model(tmp_path / "further", device="cpu")
    tested.model.eval()
    with torch.no_grad():
        logits = further(input_ids=ids).logits
        torch.testing.assert_close(logits, tested.model(input_ids=ids).logits)
        assert (logits - expected(input_ids=ids).logits).abs().max() > 1e-2


def test_an_adapter_with_other_tokens_is_not_trained_further(adapter, tmp_path):
    shutil.copytree(adapter.parent, tmp_path / "copy")
    other = tmp_path / "copy/adapter"
    tokenizer = AutoTokenizer.from_pretrained(other)
    tokenizer.add_tokens(["<another>"])
    tokenizer.save_pretrained(other)
    with pytest.raises(UserError, match="brings tokens of its own"):
        continued(other)


def test_training_an_adapter_further_goes_on_after_a_kill(adapter, tmp_path):
    options = {**ROW_BY_ROW, "teacher": "start"}

    def start(recorder, checkpoint=None):
        run = trainer(recorder, last(tmp_path), enable_checkpointing=True)
        run.fit(continued(adapter, **options), datamodule=Toy(), ckpt_path=checkpoint)

    whole, after = Recorder(), Recorder()
    trainer(whole).fit(continued(adapter, **options), datamodule=Toy())
    with pytest.raises(InterruptedError):
        start(Recorder(stop_after=8))
    start(after, "last")
    assert min(after.steps) == 6
    for number, (loss, _, _) in after.steps.items():
        assert loss == pytest.approx(whole.steps[number][0], abs=1e-6)


def test_a_checkpoint_of_another_initial_adapter_is_refused(adapter, tmp_path):
    run = trainer(last(tmp_path), max_epochs=1, enable_checkpointing=True)
    run.fit(continued(adapter), datamodule=Toy())
    model, _ = load_model(adapter.parent / "base", device="cpu")
    fresh = module(model, lora=LoRA(r=4, lora_alpha=12))
    with pytest.raises(RuntimeError, match="weights of the initial adapter"):
        trainer().fit(fresh, datamodule=Toy(), ckpt_path=str(tmp_path / "last.ckpt"))


def test_acceptance_is_the_share_of_tokens_that_the_drafts_agree_on():
    options = {"skip_strategies": [HSD(1, 0, 1), FullDepth()], "skip_weights": [1, 1]}
    tested = module(**options)
    (logged,) = (run := trainer()).validate(tested, datamodule=(data := Toy()), verbose=False)
    agreed = tokens = 0
    tested.eval()
    for number, batch in enumerate(data.val_dataloader()):
        pairs = batch["pairs"]
        drawn = tested.mixture.draw(number, 1.0, rows=len(pairs["input_ids"]))
        with torch.no_grad():
            full, skipping = tested.training_logits(pairs), tested.training_logits(pairs, drawn)
        width = full.shape[1]
        for row, strategy in enumerate(drawn):
            for place in range(1, width):
                if strategy == 0 and pairs["target_mask"][row, -width:][place]:
                    tokens += 1
                    agreed += int(full[row, place - 1].argmax() == skipping[row, place - 1].argmax())
    assert 0 < agreed < tokens
    assert logged["val/acceptance"] == pytest.approx(agreed / tokens, abs=1e-6)
    assert "val/acceptance" in run.callback_metrics


def test_dropout_and_draws_differ_from_step_to_step(whole_run):
    assert len({loss for loss, _, _ in whole_run.values()}) == len(whole_run)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    run = trainer(last(folder, every=2), enable_checkpointing=True, max_epochs=1)
    run.fit(module(lora=LoRA(r=4)), datamodule=Toy())
    return folder / "last.ckpt"


def test_a_checkpoint_holds_the_trained_weights_only(checkpoint):
    content = torch.load(checkpoint, weights_only=True)
    assert content["state_dict"]
    assert all("lora_" in name for name in content["state_dict"])
    assert content["global_step"] == 6


@pytest.mark.parametrize(
    ("model", "options", "data", "message"),
    [
        (
            tiny_llama,
            {"lora": LoRA(r=4)},
            {"letter": "a"},
            "training examples: '.*' in the checkpoint, '.*' in this",
        ),
        (tiny_llama, {"lora": LoRA(r=4)}, {"batch_size": 2}, "batch_size: 4 in the checkpoint, 2 in this run"),
        (tiny_gpt2, {"lora": LoRA(r=4)}, {}, r"model: 'llama \(3 layers.*' in the checkpoint, 'gpt2 \(3 layers"),
        (tiny_llama, {"lora": LoRA(r=8)}, {}, "lora: .*r=4,.* in the checkpoint, .*r=8,"),
        (tiny_llama, {"lora": LoRA(r=4), "learning_rate": 0.1}, {}, "learning_rate: 0.01 in the checkpoint, 0.1"),
    ],
    ids=["data", "batch-size", "architecture", "lora", "learning-rate"],
)
def test_a_run_that_does_not_fit_its_checkpoint_is_refused(checkpoint, model, options, data, message):
    with pytest.raises(ValueError, match=message):
        trainer(max_epochs=2).fit(module(model(), **options), datamodule=Toy(**data), ckpt_path=checkpoint)


def test_validation_of_a_checkpoint_minds_the_model_only(checkpoint):
    run = trainer()
    (fresh,) = run.validate(module(lora=LoRA(r=4)), datamodule=Toy(batch_size=2), verbose=False)
    (trained,) = run.validate(
        module(lora=LoRA(r=4), learning_rate=1.0), datamodule=Toy(batch_size=2), ckpt_path=checkpoint, verbose=False
    )
    assert trained["val/loss"] < fresh["val/loss"]
    with pytest.raises(ValueError, match="lora: "):
        run.validate(module(), datamodule=Toy(batch_size=2), ckpt_path=checkpoint)


def test_a_foreign_checkpoint_is_refused():
    with pytest.raises(ValueError, match="not one of hsdlab's fine-tuning"):
        module().on_load_checkpoint({"state_dict": {}})


def logits(model):
    with torch.no_grad():
        return model.eval()(torch.arange(4, 20)[None]).logits


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
@pytest.mark.parametrize("lora", [None, LoRA(r=4)], ids=["full", "lora"])
def test_the_export_loads_everywhere(tmp_path, make, lora):
    base = save(make(), tmp_path / "base")
    model, tokenizer = load_model(base, device="cpu")
    before = logits(model)
    tested = FinetuneModule(model, tokenizer, max_new_tokens=6, learning_rate=1e-2, lora=lora)
    trainer(max_epochs=1).fit(tested, datamodule=Toy())
    tested.export(tmp_path / "out")
    trained = logits(tested.model)
    assert not torch.allclose(trained, before, atol=1e-2)
    loaded, its_tokenizer = load_model(tmp_path / "out", device="cpu")
    torch.testing.assert_close(logits(loaded), trained, atol=1e-4, rtol=0)
    assert its_tokenizer("hello").input_ids == tokenizer("hello").input_ids
    plain = AutoModelForCausalLM.from_pretrained(base if lora else tmp_path / "out", dtype=torch.float32)
    if lora:
        plain = PeftModel.from_pretrained(plain, tmp_path / "out")
    torch.testing.assert_close(logits(plain), trained, atol=1e-5, rtol=0)
    assert AutoTokenizer.from_pretrained(tmp_path / "out").eos_token_id == tokenizer.eos_token_id


def test_generation_in_validation_is_under_the_trainers_strategy():
    strategy, seen = HSD(1, 0, 1), []

    class Note(Callback):
        def on_validation_end(self, trainer, pl_module):
            logged = trainer.callback_metrics
            seen.append((logged.pop("val/rougeL", None), logged.pop("val/average_layers", None)))

    tested = module(lora=LoRA(r=4), generate_every=2, generate_batches=1)
    trainer(strategy, Note(), max_epochs=4, num_sanity_val_steps=1).fit(tested, datamodule=Toy())
    assert [scores is not None for scores, _ in seen] == [False, False, True, False, True]  # the first is the check
    assert seen[4][1] == pytest.approx(2.0)  # layers 0 and 2 of 3
    assert tested.text_metrics[0].examples == 3
    (logged,) = trainer().validate(tested, datamodule=Toy(), verbose=False)
    assert {"val/loss", "val/rouge1", "val/bleu4"} <= logged.keys()
    assert "val/average_layers" not in logged


@pytest.mark.parametrize("strategy", [HSD(1, 0, 1), CALM(0.5)], ids=repr)
@pytest.mark.parametrize("run", ["fit", "validate"])
def test_a_strategy_with_nothing_to_act_on_is_refused(strategy, run):
    with pytest.raises(
        ValueError, match=rf"{re.escape(repr(strategy))} \(--skip\) would have no effect: .*skip_strategies"
    ):
        getattr(trainer(strategy), run)(module(), datamodule=Toy())


@pytest.mark.parametrize("strategy", [FullDepth(), HSD(0), SkipDecode(None, None)], ids=repr)
def test_full_depth_has_no_effect_anywhere_and_may_stay(strategy):
    (logged,) = trainer(strategy).validate(module(), datamodule=Toy(), verbose=False)
    assert logged["val/loss"] > 0


def test_bfloat16_autocast_works_with_skipping():
    run = trainer(HSD(1, 0, 1), precision="bf16-mixed", max_epochs=1, accumulate_grad_batches=2)
    run.fit(module(lora=LoRA(r=4), generate_every=1, **MIXED), datamodule=Toy())
    assert run.global_step == 3
    assert math.isfinite(run.callback_metrics["val/loss"])


def rates(schedule, warmup):
    """The learning rate of each of 100 steps and after them, as a share of its peak."""
    made = adamw(
        [nn.Parameter(torch.ones(1, 1))], learning_rate=2.0, weight_decay=0, steps=100, warmup=warmup, schedule=schedule
    )
    found = []
    for _ in range(101):
        found.append(made["optimizer"].param_groups[0]["lr"] / 2.0)
        made["optimizer"].step()
        made["lr_scheduler"]["scheduler"].step()
    return found


@pytest.mark.parametrize("schedule", get_args(LearningRateSchedule))
def test_every_schedule_needs_no_more_than_a_warm_up_and_a_length(schedule):
    found = rates(schedule, warmup=0.2)
    assert found[20] == pytest.approx(1.0)
    assert found[10] == pytest.approx(0.5)
    assert min(found[20:]) >= 0.0
    assert (found[99] < 0.95) == (schedule != "constant_with_warmup")


def test_the_learning_rate_rises_and_falls():
    cosine = rates("cosine", warmup=0.1)
    assert cosine[:11] == pytest.approx([step / 10 for step in range(11)])
    assert cosine[55] == pytest.approx(0.5)
    assert cosine[100] == pytest.approx(0.0)
    assert rates("linear", warmup=0.0) == pytest.approx([1 - step / 100 for step in range(101)])
    with pytest.raises(ValueError, match=r"give its length \(trainer\.max_epochs\)"):
        trainer(max_epochs=-1, max_steps=-1).fit(module(), datamodule=Toy())


def test_norms_and_biases_are_not_decayed():
    tested = module(tiny_gpt2(), weight_decay=0.3)
    run = trainer(max_epochs=1, limit_train_batches=1)
    run.fit(tested, datamodule=Toy())
    matrices, vectors = run.optimizers[0].param_groups
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.3, 0.0)
    assert {parameter.dim() for parameter in vectors["params"]} == {1}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate=0.0: expected more than 0"),
        ({"learning_rate": -1e-5}, "learning_rate=-1e-05: expected more than 0"),
        ({"weight_decay": -0.1}, "weight_decay=-0.1: expected 0 or more"),
        ({"warmup": 1.5}, "warmup=1.5: expected a share of the steps"),
        ({"learning_rate_schedule": "step"}, "learning_rate_schedule='step': expected one of linear, cosine, "),
        ({"max_new_tokens": 0}, "max_new_tokens=0: expected 1 or more"),
        ({"generate_every": -1}, "generate_every=-1: expected 0"),
        ({"generate_batches": 0}, "generate_batches=0: expected 1 or more"),
        ({"skip_weights": [1.0]}, "skip_weights: there are no skip_strategies"),
        ({"final_skip_weights": [1.0]}, "final_skip_weights: there are no skip_strategies"),
        ({"distillation": 0.5}, "distillation: there are no skip_strategies"),
        ({"distillation": 1.5, **MIXED}, "distillation=1.5: expected a share"),
        ({"teacher": "start", **MIXED}, "teacher=start: it teaches nothing without distillation"),
        ({"teacher": "me", "distillation": 0.5, **MIXED}, "teacher='me': expected itself or start"),
        ({"lora": LoRA(r=4), "initial_adapter": "x"}, "initial_adapter has LoRA's options itself: leave lora out"),
        ({"initial_adapter": "nowhere"}, "initial_adapter: no adapter at .*nowhere"),
        ({"skip_draws": "token", **MIXED}, "skip_draws='token': expected batch or example"),
        ({**MIXED, "final_skip_weights": [1.0, 2.0]}, "final_skip_weights has 2 numbers for 3 skip_strategies"),
    ],
)
def test_parameters_are_checked_in_the_users_words(options, message):
    with pytest.raises(ValueError, match=message):
        module(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"r": 0}, r"lora\.r=0: expected 1 or more"),
        ({"lora_alpha": 0}, r"lora\.lora_alpha=0: expected more than 0"),
        ({"lora_alpha": math.inf}, r"lora\.lora_alpha=inf: expected more than 0"),
        ({"lora_dropout": 1.0}, r"lora\.lora_dropout=1.0: expected 0 or more, and less"),
        ({"target_modules": []}, r"lora\.target_modules is empty"),
        (
            {"target_modules": ["q_proj", "proj"]},
            r"'proj' matches no layer of LlamaForCausalLM; its linear ones are down_proj, .*q_proj",
        ),
        ({"target_modules": r".*\.attn\.\w_proj"}, r"target_modules: '.*' matches no layer of LlamaForCausalLM"),
        ({"target_modules": ["mlp"]}, r"lora: peft cannot add it to LlamaForCausalLM: Target module LlamaMLP"),
        ({"layers_to_transform": [0]}, r"lora: peft refuses it: `layers_to_transform` cannot be used"),
    ],
)
def test_lora_is_checked_in_the_users_words(options, message):
    with pytest.raises(ValueError, match=message):
        module(lora=LoRA(**options))


def trained(lora, make=tiny_llama):
    return {name for name, parameter in module(make(), lora=lora).named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("targets", [["self_attn.q_proj"], r".*\.q_proj"], ids=["names", "regular-expression"])
def test_lora_targets_choose_layers(targets):
    names = trained(LoRA(target_modules=targets))
    assert names
    assert all("q_proj.lora_" in name for name in names)


def test_lora_takes_every_option_of_peft():
    assert any("magnitude" in name for name in trained(LoRA(use_dora=True)))
    names = trained(LoRA(target_modules=[], target_parameters=["q_proj.weight"]))
    assert names
    assert all("q_proj.lora_" in name for name in names)
    tested = module(lora=LoRA(r=4, use_rslora=True))
    assert tested.model.base_model.model.model.layers[0].mlp.up_proj.scaling == {"default": 16.0}  # 32 / sqrt(4)


def test_a_config_of_peft_is_taken_as_it_is():
    config = LoraConfig(r=2, target_modules=["c_attn"])
    before = copy.deepcopy(vars(config))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="fan_in_fan_out")  # where it is wrong for GPT-2
        tested = module(tiny_gpt2(), lora=config)
    assert vars(config) == before
    adapter = tested.model.peft_config["default"]
    assert (adapter.r, adapter.lora_alpha, adapter.fan_in_fan_out, adapter.task_type) == (2, 8, True, "CAUSAL_LM")
    with pytest.raises(ValueError, match=r"lora\.r=0: expected 1 or more"):
        module(lora=LoraConfig(r=0))


def test_a_lora_is_named_by_its_usual_options_and_what_differs():
    assert repr(LoRA()) == "LoRA(r=16, lora_alpha=32, lora_dropout=0.0, target_modules='all-linear')"
    listed = [f"layer_{number}" for number in range(9)]
    assert described(LoRA(target_modules=listed[::-1])).endswith(f"target_modules={listed})")  # a set has no order
    assert "rank_pattern={'q': 2}" in repr(LoRA(rank_pattern={"q": 2}))
    assert "peft_version" not in described(LoraConfig(peft_version="0.1"))


def test_a_model_that_stops_at_another_token_is_refused():
    model = tiny_llama()
    model.generation_config.eos_token_id = 5
    with pytest.raises(ValueError, match=r"end-of-sequence token is 1, but model\.generate stops at 5"):
        module(model)
