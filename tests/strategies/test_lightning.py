"""A strategy as a Lightning callback: where it acts, what it logs, and that it always lets go of the model."""

import copy
import pickle

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch.utils.data import DataLoader

from hsdlab import HSD, FullDepth, SkipDecode
from hsdlab.decoding import active_run
from hsdlab.testing import prompts, tiny_model


class Module(lightning.LightningModule):
    """A user's own module: decodes in each loop, and has a teacher-forced loss."""

    def __init__(self, fail_in=None):
        super().__init__()
        self.model = tiny_model()
        self.fail_in = fail_in
        self.seen = []
        self.losses = []

    def _decode(self, stage):
        if self.fail_in == stage:
            raise RuntimeError("broken step")
        input_ids, mask = prompts(3)
        self.model.generate(input_ids, attention_mask=mask, max_new_tokens=6, eos_token_id=None)
        run = active_run(self.model)
        self.seen.append((stage, run and run.trace.average_layers))
        self.losses.append(self.model(input_ids, labels=input_ids).loss.item())

    def training_step(self, batch, index):
        return self.model(prompts(3)[0], labels=prompts(3)[0]).loss

    def validation_step(self, batch, index):
        self._decode("val")

    def test_step(self, batch, index):
        self._decode("test")

    def predict_step(self, batch, index):
        self._decode("predict")

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def trainer(*callbacks, **options):
    return lightning.Trainer(
        accelerator="cpu",
        max_epochs=1,
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


@pytest.fixture
def data():
    return DataLoader([0, 1])


@pytest.mark.parametrize("loop", ["validate", "test", "predict"])
def test_acts_in_each_loop_and_lets_go(data, loop):
    module, strategy = Module(), HSD(1, 0, 3)
    getattr(trainer(strategy), loop)(module, data)
    expected = sum(map(len, strategy.scheduled_layers(6, 6))) / 5
    assert [depth for _, depth in module.seen] == pytest.approx([expected, expected])
    assert active_run(module.model) is None
    assert strategy.efficiency["average_layers"] == pytest.approx(expected)


def test_acts_in_the_validation_of_fit_and_not_in_its_training_steps(data):
    module = Module()
    trainer(HSD(1, 0, 3), num_sanity_val_steps=1).fit(module, data, data)
    assert [stage for stage, _ in module.seen] == ["val"] * 3
    assert all(depth < 6 for _, depth in module.seen)
    assert active_run(module.model) is None


def test_teacher_forced_losses_stay_at_full_depth(data):
    skipping, full = Module(), Module()
    trainer(SkipDecode(0, 1)).test(skipping, data)
    trainer(FullDepth()).test(full, data)
    assert skipping.losses == full.losses
    assert skipping.seen != full.seen


@pytest.mark.parametrize("stage", ["val", "test"])
def test_logs_depth_and_speed(data, stage):
    run = trainer(HSD(1, 0, 3))
    (run.validate if stage == "val" else run.test)(Module(), data, verbose=False)
    logged = run.callback_metrics
    assert logged[f"{stage}/average_layers"] == pytest.approx(sum(map(len, HSD(1, 0, 3).scheduled_layers(6, 6))) / 5)
    assert logged[f"{stage}/share_skipped"] == pytest.approx(1 - logged[f"{stage}/average_layers"] / 6)
    assert logged[f"{stage}/decode_step_ms"] > 0
    assert logged[f"{stage}/tokens_per_second"] > 0
    assert logged[f"{stage}/flops_per_token"] > 0


@pytest.mark.parametrize(("loop", "stage"), [("validate", "val"), ("test", "test"), ("predict", "predict")])
def test_restores_the_model_after_an_exception(data, loop, stage):
    module = Module(fail_in=stage)
    classes = [type(layer) for layer in module.model.model.layers]
    with pytest.raises(RuntimeError, match="broken step"):
        getattr(trainer(HSD(1, 0, 3)), loop)(module, data)
    assert active_run(module.model) is None
    assert [type(layer) for layer in module.model.model.layers] == classes
    assert "generate" not in vars(module.model)


def test_restores_the_model_when_another_callback_fails(data):
    class Failing(Callback):
        def on_test_batch_end(self, *args):
            raise KeyError("elsewhere")

    module = Module()
    with pytest.raises(KeyError, match="elsewhere"):
        trainer(HSD(1, 0, 3), Failing()).test(module, data)
    assert active_run(module.model) is None


def test_two_strategies_are_refused_with_the_way_to_compare(data):
    with pytest.raises(ValueError, match=r"got 2: HSD, FullDepth.*or compare several with"):
        trainer(HSD(), FullDepth()).test(Module(), data)


def test_a_module_without_a_model_is_refused(data):
    class Bare(lightning.LightningModule):
        def test_step(self, batch, index): ...

    with pytest.raises(ValueError, match="attribute 'model', which Bare does not have"):
        trainer(HSD()).test(Bare(), data)


def test_a_used_strategy_can_be_copied_and_pickled(data):
    strategy = HSD(2, 0, 3)
    trainer(strategy).test(Module(), data, verbose=False)
    for other in (copy.deepcopy(strategy), pickle.loads(pickle.dumps(strategy))):
        assert other.parameters() == strategy.parameters()
        with pytest.raises(RuntimeError, match="not decoded anything"):
            _ = other.efficiency
