"""Numbers that are not finite: options are refused, losses stop a run, nothing of it is written or read."""

import math

import pytest
import torch
from lightning.pytorch import Callback

from hsdlab import FullDepth
from hsdlab.errors import RunError
from hsdlab.modules import Checkpoints, DecodeModule, ExitClassifierModule, FinetuneModule, LoRA
from hsdlab.modules.checkpoint_files import CheckpointFiles, read_checkpoint
from hsdlab.modules.finite import first_not_finite
from tests.modules.test_decode import data as data
from tests.modules.test_decode import module as decode_module
from tests.modules.test_decode import trainer as decode_trainer
from tests.modules.test_finetune import MIXED, Toy, module, trainer
from tests.tiny_checkpoints import tiny_llama, tiny_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
NAN, INF = math.nan, math.inf


@pytest.mark.parametrize("number", [NAN, INF, -INF])
@pytest.mark.parametrize("name", ["learning_rate", "weight_decay", "warmup", "distillation", "skip_weights"])
def test_options_of_fine_tuning_are_finite(name, number):
    value = [1.0, number, 1.0] if name == "skip_weights" else number
    with pytest.raises(ValueError, match=name):
        module(**{**MIXED, name: value})


@pytest.mark.parametrize("number", [NAN, INF])
@pytest.mark.parametrize("name", ["lora_alpha", "lora_dropout", "alpha_pattern"])
def test_options_of_lora_are_finite(name, number):
    value = {"q_proj": number} if name == "alpha_pattern" else number
    with pytest.raises(ValueError, match=rf"lora\.{name}"):
        LoRA(**{name: value})


@pytest.mark.parametrize("number", [NAN, INF])
def test_the_exit_classifiers_learning_rate_is_finite(number):
    with pytest.raises(ValueError, match="learning_rate"):
        ExitClassifierModule(tiny_llama(), tiny_tokenizer(), learning_rate=number)


def spoil(tested, call, path="layers.1.mlp"):
    """Have a part of the model give a NaN from one of its calls on."""
    calls = []

    def hook(part, arguments, output):
        calls.append(1)
        return output * NAN if len(calls) >= call else output

    tested.model.get_submodule(f"model.{path}").register_forward_hook(hook)
    return tested


@pytest.mark.parametrize("options", [{}, MIXED], ids=["plain", "skip-aware"])
def test_a_loss_that_is_no_number_stops_the_run(tmp_path, options):
    run = trainer(Checkpoints(tmp_path, 2), enable_checkpointing=True, num_sanity_val_steps=0)
    message = r"train/loss in step 4 \(epoch 1\) is nan for the examples train-\d+, .*: the first output that is not"
    with pytest.raises(RunError, match=message + r" finite is that of model\.layers\.1\.mlp"):
        run.fit(spoil(module(**options), 4), datamodule=Toy())
    assert read_checkpoint(tmp_path / "last.ckpt")["global_step"] == 2


class Break(Callback):
    """Makes a trained weight infinite at the end of a step."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, pl_module, *args):
        if trainer.global_step == self.step:
            with torch.no_grad():
                next(p for p in pl_module.parameters() if p.requires_grad).fill_(INF)


def test_weights_that_are_not_finite_name_the_step_before(tmp_path):
    run = trainer(Break(1), Checkpoints(tmp_path, 100), enable_checkpointing=True)
    message = r"in step 2 .* is nan .*: the weights \S+ are not finite since the step before \(examples train-"
    with pytest.raises(RunError, match=message):
        run.fit(module(), datamodule=Toy())


class NoGradient(torch.autograd.Function):
    """Passes its input on; its gradient is no number."""

    @staticmethod
    def forward(context, value):
        return value.clone()

    @staticmethod
    def backward(context, gradient):
        return gradient * NAN


def test_detect_anomaly_finds_a_gradient_that_is_no_number():
    tested = module()
    tested.model.lm_head.register_forward_hook(lambda part, arguments, logits: NoGradient.apply(logits))
    with pytest.raises(RunError, match=r"A gradient in step 1 is NaN for the examples train-.*NoGradient"):
        trainer(detect_anomaly=True).fit(tested, datamodule=Toy())


def test_a_validation_loss_that_is_no_number_stops_the_run(tmp_path):
    run = trainer(Checkpoints(tmp_path, 100), enable_checkpointing=True, num_sanity_val_steps=0)
    with pytest.raises(RunError, match=r"val/loss after step 6 is nan for the examples validation-0, validation-1"):
        run.fit(spoil(module(), 7), datamodule=Toy())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["learning_rate", "weight_decay"])
def test_rates_that_no_model_survives_are_refused_or_stop_the_run(tmp_path, name):
    with pytest.raises(ValueError, match=rf"{name}=1e\+30: expected .* 1000 at most"):
        module(**{name: 1e30})
    run = trainer(Checkpoints(tmp_path, 1), enable_checkpointing=True, max_epochs=10)
    with pytest.raises(RunError, match=r"is (nan|inf) for the examples|not finite"):
        run.fit(module(learning_rate=1000.0, weight_decay=1000.0, warmup=0.0), datamodule=Toy())


def test_weights_that_are_not_finite_are_not_written(tmp_path):
    tested, made = module(lora=LoRA(r=4)), Checkpoints(tmp_path, 2)
    with pytest.raises(RunError, match=r"lora_A.* after step 6 is not finite"):
        trainer(Break(6), made, enable_checkpointing=True, limit_val_batches=0).fit(tested, datamodule=Toy())
    assert read_checkpoint(made.last)["global_step"] == 4
    with pytest.raises(RunError, match=r"a weight of the model to export, is not finite, so no file is written"):
        tested.export(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_model_that_computes_no_numbers_is_not_exported(tmp_path):
    tested = spoil(module(), 1)
    with pytest.raises(RunError, match="The output of the model to export is not finite"):
        tested.export(tmp_path / "model")
    assert tested.model.training
    assert not (tmp_path / "model").exists()


def test_an_export_that_fails_keeps_the_one_before(tmp_path, monkeypatch):
    tested = module()
    tested.export(tmp_path / "model")
    before = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}

    def full(folder, *args, **kwargs):
        (tmp_path / ".half").write_text("")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tested.tokenizer, "save_pretrained", full)
    with pytest.raises(RunError, match=rf"{tmp_path / 'model'} could not be written: no space left on device"):
        tested.export(tmp_path / "model")
    assert {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()} == before
    assert {path.name for path in tmp_path.iterdir()} == {"model", ".half"}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A checkpoint of two steps of LoRA."""
    folder = tmp_path_factory.mktemp("checkpoint")
    run = trainer(Checkpoints(folder, 2), enable_checkpointing=True, max_epochs=-1, max_steps=2)
    run.fit(module(lora=LoRA(r=4)), datamodule=Toy())
    return folder / "last.ckpt"


def no_weights(checkpoint):
    checkpoint["state_dict"] = {}


def one_less(checkpoint):
    checkpoint["state_dict"].popitem()


def one_more(checkpoint):
    checkpoint["state_dict"]["model.other"] = torch.zeros(1)


def another_shape(checkpoint):
    name = next(iter(checkpoint["state_dict"]))
    checkpoint["state_dict"][name] = torch.zeros(1)


def not_a_tensor(checkpoint):
    checkpoint["state_dict"][next(iter(checkpoint["state_dict"]))] = "text"


def full_of_nan(checkpoint):
    for weight in checkpoint["state_dict"].values():
        weight.fill_(NAN)


def no_optimizer(checkpoint):
    del checkpoint["optimizer_states"]


def nan_in_the_optimizer(checkpoint):
    checkpoint["optimizer_states"][0]["state"][0]["exp_avg"].fill_(INF)


def no_identity(checkpoint):
    del checkpoint["hsdlab"]["identity"]


def no_word_of_the_best(checkpoint):
    del checkpoint["callbacks"]["Checkpoints"]


BAD = {
    no_weights: r"lacks \d+ weights, among them model",
    one_less: "lacks 1 weights",
    one_more: "holds 1 weights that this model does not train, among them model.other",
    another_shape: r"is \(1,\), expected \(",
    not_a_tensor: r"is str, expected",
    full_of_nan: "holds numbers that are not finite",
    no_optimizer: "holds no state of the optimizer",
    nan_in_the_optimizer: "exp_avg of the optimizer's state holds numbers",
    no_identity: "is not one of hsdlab's fine-tuning",
    no_word_of_the_best: "A run cannot resume from",
}


@pytest.mark.parametrize("change", BAD, ids=lambda change: change.__name__)
def test_a_checkpoint_that_is_not_whole_is_not_restored(tmp_path, checkpoint, change):
    found = read_checkpoint(checkpoint)
    change(found)
    CheckpointFiles().save_checkpoint(found, tmp_path / "last.ckpt")
    run = trainer(Checkpoints(tmp_path / "out", 2), enable_checkpointing=True)
    with pytest.raises(RunError, match=BAD[change]):
        run.fit(module(lora=LoRA(r=4)), datamodule=Toy(), ckpt_path=tmp_path / "last.ckpt")


def test_a_checkpoint_of_other_base_weights_is_not_restored(checkpoint):
    other = tiny_llama()
    with torch.no_grad():
        other.lm_head.weight += 1
    with pytest.raises(RunError, match=r"weights of the base model: '.*' in the checkpoint, '.*' in this run"):
        trainer().validate(module(other, lora=LoRA(r=4)), datamodule=Toy(), ckpt_path=checkpoint)


def test_a_fine_tunings_checkpoint_is_no_exit_classifiers(checkpoint):
    tested = ExitClassifierModule(tiny_llama(), tiny_tokenizer(), max_new_tokens=6)
    with pytest.raises(RunError, match="is not an exit classifier's"):
        trainer().fit(tested, datamodule=Toy(), ckpt_path=checkpoint)


def test_decoding_names_the_examples(data):
    decoder = decode_module(num_beams=1, max_new_tokens=4)
    decoder.model.lm_head.register_forward_hook(lambda part, arguments, logits: logits * NAN)
    assert isinstance(decoder, DecodeModule)
    with pytest.raises(RunError, match=r"the prefill, sequence 0, 1 of .* These are the examples test-0, test-2\."):
        decode_trainer(FullDepth()).test(decoder, datamodule=data, verbose=False)


def test_the_first_part_is_the_first_that_computes():
    model = tiny_llama()
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0] = NAN
        model.model.layers[2].self_attn.q_proj.weight[0, 0] = NAN
    name = first_not_finite(model, lambda: model(torch.tensor([[3, 4]])))
    assert name == "model.layers.1.mlp.down_proj"
    assert first_not_finite(tiny_llama(), lambda: None) is None
    assert isinstance(module(), FinetuneModule)
