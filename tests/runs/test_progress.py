"""Each way to run a Trainer tells how far it has come; Lightning's own bar is replaced unless one is configured."""

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.demos.boring_classes import BoringModel

from hsdlab.progress import Steps
from hsdlab.runs.progress import ShowsProgress


@pytest.fixture
def shown(monkeypatch):
    """The lines that each piece of progress would have written at its end."""
    lines = []
    leave = Steps.__exit__

    def end(self, *exception):
        lines.append(self.line().partition(",")[0])
        leave(self, *exception)

    monkeypatch.setattr(Steps, "__exit__", end)
    return lines


def trainer(tmp_path, **options):
    quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    return Trainer(
        default_root_dir=tmp_path,
        accelerator="cpu",
        callbacks=[ShowsProgress()],
        limit_test_batches=3,
        **quiet,
        **options,
    )


def test_testing_counts_batches(shown, tmp_path):
    trainer(tmp_path).test(BoringModel(), verbose=False)
    assert shown == ["Decoding: 3 of 3 batches (100 %)"]


def test_validating_and_predicting_count_batches(shown, tmp_path):
    made = trainer(tmp_path, limit_val_batches=2, limit_predict_batches=4)
    made.validate(BoringModel(), verbose=False)
    made.predict(BoringModel())
    assert shown == ["Validating: 2 of 2 batches (100 %)", "Decoding: 4 of 4 batches (100 %)"]


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"max_steps": 5, "limit_train_batches": 4}, "Training: 5 of 5 steps (100 %)"),
        ({"max_epochs": 2, "limit_train_batches": 5, "accumulate_grad_batches": 2}, "Training: 6 of 6 steps (100 %)"),
    ],
)
def test_training_counts_steps_of_the_optimizer(options, line, shown, tmp_path):
    trainer(tmp_path, limit_val_batches=2, **options).fit(BoringModel())
    assert shown == [line]


def test_an_error_ends_it(shown, tmp_path):
    class Breaks(BoringModel):
        def test_step(self, batch, batch_idx):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        trainer(tmp_path).test(Breaks(), verbose=False)
    assert shown == ["Decoding: 0 of 3 batches (0 %)"]


def test_lightning_takes_it_for_its_bar(tmp_path):
    made = trainer(tmp_path)
    assert isinstance(made.progress_bar_callback, ShowsProgress)
    assert not any(isinstance(callback, TQDMProgressBar) for callback in made.callbacks)
