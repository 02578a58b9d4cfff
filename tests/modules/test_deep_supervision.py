"""Deep supervision: the loss is the weighted mean of the model's own head on every layer's output."""

import math

import pytest
import torch
from lightning.pytorch import Callback

from hsdlab import HSD, FullDepth
from hsdlab.data.batches import Pair, collate_pairs
from hsdlab.decoding.layer_outputs import layer_outputs
from hsdlab.modules import DeepSupervision, LayerDropout, LoRA
from hsdlab.modules.deep_supervision import supervised_loss
from hsdlab.modules.losses import reference_loss
from tests.modules.test_finetune import Recorder, Toy, last, module, trainer
from tests.tiny_checkpoints import TOKENS, tiny_gpt2, tiny_llama

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
LAYERSKIP = {"deep_supervision": DeepSupervision("layerskip", 0.5, 2), "layer_dropout": LayerDropout(0.5, "uniform")}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [1 / 10, 2 / 10, 3 / 10, 4 / 10]),
        ({"weights": "uniform"}, [1 / 4] * 4),
        ({"weights": "layerskip"}, [1 / 20, 3 / 20, 6 / 20, 10 / 20]),
        ({"weights": "layerskip", "scale": 0.1}, [0.1 / 11, 0.3 / 11, 0.6 / 11, 10 / 11]),
        ({"weights": "layerskip", "rotation": 2}, [1 / 17, 0, 6 / 17, 10 / 17]),
        ({"weights": "uniform", "rotation": 7}, [1 / 2, 0, 0, 1 / 2]),
    ],
)
def test_the_weights_are_those_computed_by_hand(options, expected):
    weights = DeepSupervision(**options).layer_weights(num_layers=4, batch=0)
    assert weights == pytest.approx(expected)
    assert sum(weights) == pytest.approx(1)


@pytest.mark.parametrize("rotation", [1, 2, 3, 5])
@pytest.mark.parametrize("start", [0, 4])
def test_each_layer_has_its_turn_once_in_a_rotation_and_the_last_one_always(rotation, start):
    supervision = DeepSupervision(rotation=rotation)
    turns = [supervision.layer_weights(8, batch) for batch in range(start, start + rotation)]
    assert [sum(weight > 0 for weight in layer) for layer in zip(*turns, strict=True)] == [1] * 7 + [rotation]


def plain_losses(model, batch):
    """Each layer's loss through transformers' own hidden states, the last of which is normed already."""
    norm = model.model.norm if hasattr(model, "model") else model.transformer.ln_f
    mask = batch["attention_mask"]
    states = model(
        batch["input_ids"],
        attention_mask=mask,
        position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
        output_hidden_states=True,
    ).hidden_states[1:]
    logits = [model.lm_head(norm(state)) for state in states[:-1]] + [model.lm_head(states[-1])]
    return torch.stack([reference_loss(each, batch["input_ids"], batch["target_mask"]) for each in logits])


class Expected(Callback):
    """Computes the losses of each batch's layers just before its step."""

    def __init__(self):
        self.losses, self.trained_on = [], []

    @torch.no_grad()
    def on_train_batch_start(self, trainer, pl_module, batch, batch_index):
        self.losses.append(plain_losses(pl_module.model, batch).tolist())

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_index):
        self.trained_on.append(outputs["loss"].item())


def test_a_training_step_has_the_weighted_mean_of_all_layers_losses():
    uniform, rotating = Expected(), Expected()
    options = {"max_epochs": 1, "limit_train_batches": 3}
    trainer(uniform, **options).fit(module(deep_supervision=DeepSupervision("uniform")), datamodule=Toy())
    supervision = DeepSupervision("layerskip", scale=0.5, rotation=2)
    trainer(rotating, **options).fit(module(deep_supervision=supervision), datamodule=Toy())
    assert uniform.trained_on == pytest.approx([sum(losses) / 3 for losses in uniform.losses], rel=1e-5)
    by_hand = [
        (0.5 * a + 6 * c) / 6.5 if i != 1 else (1.5 * b + 6 * c) / 7.5 for i, (a, b, c) in enumerate(rotating.losses)
    ]
    assert rotating.trained_on == pytest.approx(by_hand, rel=1e-5)


def batch_of_pairs():
    return collate_pairs([Pair([7, 8, 9], [10, 11]), Pair([12], [13, 14, 15, 16]), Pair([17, 18], [1])], 0)


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
def test_gradients_are_those_of_the_plain_weighted_mean_and_reach_all_layers(make):
    batch, weights = batch_of_pairs(), [0.2, 0.3, 0.5]
    tested = module(make().double(), deep_supervision=DeepSupervision())
    tested.model.eval()  # no dropout
    with layer_outputs(tested.model) as outputs:
        logits = tested.training_logits(batch)
    loss = supervised_loss(tested.model, outputs, logits, batch, weights, DeepSupervision())
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in tested.model.named_parameters()}
    tested.model.zero_grad()
    plain = plain_losses(tested.model, batch) @ torch.tensor(weights, dtype=torch.float64)
    plain.backward()
    assert loss.item() == pytest.approx(plain.item(), rel=1e-12)
    for name, parameter in tested.model.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-9, atol=1e-12)
    assert all(gradient.abs().sum() > 0 for gradient in gradients.values())


def test_the_logits_of_one_layer_at_a_time_are_kept():
    def kept(supervise):
        sizes = []
        hooks = torch.autograd.graph.saved_tensors_hooks(lambda kept: sizes.append(kept.shape) or kept, lambda x: x)
        with hooks, layer_outputs(tested.model) as outputs:
            logits = tested.training_logits(batch)
            weights = [0.2, 0.3, 0.5] if supervise else [0.0, 0.0, 1.0]
            loss = supervised_loss(tested.model, outputs, logits, batch, weights, DeepSupervision())
        loss.backward()
        return sum(len(size) == 2 and size[1] == len(TOKENS) for size in sizes)

    batch, tested = batch_of_pairs(), module()
    assert kept(supervise=True) == kept(supervise=False) > 0


def test_early_layers_learn_and_validation_is_of_the_last_one():
    plain, supervised = module(), module(deep_supervision=DeepSupervision("uniform"))
    for tested in (plain, supervised):
        trainer(run := Expected(), max_epochs=4).fit(tested, datamodule=Toy())
        first, others, final = (sum(losses) / 6 for losses in zip(*run.losses[-6:], strict=True))
        assert final < 2
        assert (max(first, others) < 3) == (tested is supervised)
    (logged,) = trainer().validate(supervised, datamodule=Toy(), verbose=False)
    del logged["val/supervised_loss"]
    supervised.deep_supervision = None
    assert trainer().validate(supervised, datamodule=Toy(), verbose=False) == [logged]


def test_validation_has_the_weighted_mean_over_all_exits_with_nothing_drawn():
    supervision = DeepSupervision("uniform", rotation=2, positions=0.3, exiting=1.0, layers=[0, 1])
    tested, data = module(deep_supervision=supervision), Toy()
    (logged,) = trainer().validate(tested, datamodule=data, verbose=False)
    tested.model.eval()
    total = tokens = 0.0
    with torch.no_grad():
        for batch in data.val_dataloader():
            pairs = batch["pairs"]
            number = int(pairs["target_mask"].sum())
            total, tokens = total + number * plain_losses(tested.model, pairs).mean().item(), tokens + number
    assert logged["val/supervised_loss"] == pytest.approx(total / tokens, rel=1e-5)


@pytest.mark.parametrize("lora", [None, LoRA(r=4, lora_dropout=0.2)], ids=["full", "lora"])
def test_layerskips_training_goes_on_after_a_kill_to_the_same_losses(tmp_path, lora):
    def start(recorder, checkpoint=None, **options):
        run = trainer(recorder, last(tmp_path), enable_checkpointing=True)
        run.fit(module(lora=lora, **{**LAYERSKIP, **options}), datamodule=Toy(), ckpt_path=checkpoint)

    whole, after = Recorder(), Recorder()
    trainer(whole).fit(module(lora=lora, **LAYERSKIP), datamodule=Toy())
    with pytest.raises(InterruptedError):
        start(Recorder(stop_after=7))
    start(after, tmp_path / "last.ckpt")
    assert list(after.steps) == list(range(6, 18))
    for number, (loss, _, _) in after.steps.items():
        assert loss == pytest.approx(whole.steps[number][0], abs=1e-6)
    assert len({loss for loss, _, _ in whole.steps.values()}) == 18
    with pytest.raises(ValueError, match=r"deep_supervision: .*rotation=2.* in the checkpoint, .*rotation=3"):
        start(Recorder(), tmp_path / "last.ckpt", deep_supervision=DeepSupervision("layerskip", 0.5, 3))
    with pytest.raises(ValueError, match=r"layer_dropout: .*rate=0.5.* in the checkpoint, None in this run"):
        start(Recorder(), tmp_path / "last.ckpt", layer_dropout=None)


def test_bfloat16_autocast_works():
    run = trainer(precision="bf16-mixed", max_epochs=1, accumulate_grad_batches=2)
    run.fit(module(lora=LoRA(r=4), **LAYERSKIP), datamodule=Toy())
    assert math.isfinite(run.callback_metrics["train/loss"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": "cubic"}, r"deep_supervision\.weights='cubic': expected calm, uniform or layerskip"),
        ({"scale": 0}, r"deep_supervision\.scale=0: expected more than 0 .* leave deep_supervision out"),
        ({"scale": 1.5}, r"deep_supervision\.scale=1\.5: expected more than 0 and 1 at most"),
        ({"rotation": 0}, r"deep_supervision\.rotation=0: expected 1 \(all layers at once\) or more"),
    ],
)
def test_parameters_are_checked_in_the_users_words(options, message):
    with pytest.raises(ValueError, match=message):
        DeepSupervision(**options)


def test_what_contradicts_skip_strategies_is_refused():
    with pytest.raises(ValueError, match="skip_strategies cannot be combined with layer_dropout"):
        module(skip_strategies=[FullDepth()], layer_dropout=LAYERSKIP["layer_dropout"])
    with pytest.raises(ValueError, match=r"distillation cannot be combined with deep_supervision, which has its own"):
        module(skip_strategies=[HSD()], distillation=0.5, deep_supervision=LAYERSKIP["deep_supervision"])
