"""Each option of the Trainer that a user is likely to try works, or is refused in a sentence before anything loads."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch

import hsdlab.cli.train
import hsdlab.modules.decode
from hsdlab.cli import main as evaluate
from hsdlab.cli.train import TrainCLI
from hsdlab.cli.train import main as train
from tests.cli.test_train import options as options
from tests.tiny_runs import options as decoding_options

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")

REFUSED = {  # option: what the sentence says
    "overfit_batches=1": "overfit_batches=1: .* --data.limit=8",
    "overfit_batches=0.5": r"overfit_batches=0\.5",
    "barebones=true": "barebones=true: it leaves all figures and files out",
    "enable_checkpointing=false": "enable_checkpointing=false: without checkpoints",
    "max_steps=0": "max_steps=0: nothing would be trained",
    "max_steps=-2": "max_steps=-2",
    "max_epochs=0": "max_epochs=0: nothing would be trained",
    "max_epochs=-2": "max_epochs=-2",
    "limit_train_batches=0": "limit_train_batches=0: nothing would be trained",
    "limit_train_batches=0.0": r"limit_train_batches=0\.0: nothing would be trained",
    "limit_train_batches=1.5": "limit_train_batches=1.5: expected a number of batches, or a share",
    "limit_val_batches=-1": "limit_val_batches=-1: expected a number",
    "val_check_interval=0": "val_check_interval=0: expected",
    "val_check_interval=0.0": "val_check_interval=0.0: expected",
    "val_check_interval=1.5": "val_check_interval=1.5: expected",
    "val_check_interval=00:00:01:00": "val_check_interval=00:00:01:00: a validation by the clock",
    "check_val_every_n_epoch=0": "check_val_every_n_epoch=0: expected 1 or more",
    "accumulate_grad_batches=0": "accumulate_grad_batches=0: expected 1",
    "num_sanity_val_steps=-2": "num_sanity_val_steps=-2",
    "reload_dataloaders_every_n_epochs=-1": "reload_dataloaders_every_n_epochs=-1",
    "log_every_n_steps=-1": "log_every_n_steps=-1",
    "gradient_clip_val=.nan": "gradient_clip_val=nan: expected 0 or more, and finite",
    "gradient_clip_val=.inf": "gradient_clip_val=inf: expected 0 or more, and finite",
    "gradient_clip_val=-1": "gradient_clip_val=-1",
    "gradient_clip_algorithm=nonsense": "gradient_clip_algorithm=nonsense",
    "precision=16-true": "precision=16-true: AdamW",
    "precision=16-mixed": "precision=16-mixed is not available on the CPU",
    "precision=transformer-engine": "precision=transformer-engine",
    "precision=nonsense": "precision",
    "accelerator=gpu": "accelerator=gpu",
    "accelerator=nonsense": "accelerator=nonsense",
    "devices=0": "devices=0: expected 1 or more",
    "devices=999": r"devices=999: this machine has \d+ CPU cores",
    "devices=nonsense": "devices=nonsense",
    "num_nodes=0": "num_nodes=0: expected 1",
    "num_nodes=2": "num_nodes=2: this process would wait for the other machines",
    "strategy=fsdp": "strategy=fsdp: expected one of auto, ddp",
    "strategy=deepspeed": "strategy=deepspeed: expected one of",
    "strategy=ddp_spawn": "strategy=ddp_spawn: expected one of",
    "strategy=nonsense": "strategy=nonsense: expected one of",
    "strategy={class_path: lightning.pytorch.strategies.DDPStrategy, init_args: {start_method: spawn}}": (
        "strategy=DDPStrategy: expected one of auto, ddp"
    ),
    "sync_batchnorm=true": "sync_batchnorm=true: the models have no",
    "model_registry=name": "model_registry=name: hsdlab uploads nothing",
    "profiler=nonsense": "profiler=nonsense",
    "logger=nonsense": "logger",
    "logger=os.system": "logger",
    "callbacks=os.system": "callbacks",
    "plugins=TorchCheckpointIO": "plugins: hsdlab writes checkpoints itself",
    "plugins=nonsense": "plugins",
    "default_root_dir=elsewhere": "default_root_dir",
    "max_time=nonsense": "max_time",
    "deterministic=nonsense": "deterministic",
    "enable_progress_bar=nonsense": "enable_progress_bar",
    "nonsense=1": "nonsense",
}
REFUSED_IN_A_FIT_ONLY = {"enable_checkpointing=false", "precision=16-true"}
NOT_TO_DECODE = {  # subcommand and option: what the sentence says
    ("test", "limit_test_batches=0"): "limit_test_batches=0: test would read nothing",
    ("test", "limit_test_batches=0.1"): "limit_test_batches=0.1 of 3 batches is less than one",
    ("compare", "limit_test_batches=0.0"): "limit_test_batches=0: compare would read nothing",
    ("validate", "limit_val_batches=0"): "limit_val_batches=0: validate would read nothing",
    ("predict", "limit_predict_batches=0"): "limit_predict_batches=0: predict would read nothing",
    ("test", "limit_val_batches=1"): "limit_val_batches=1 has no effect on test",
    ("calibrate", "limit_val_batches=1"): "limit_val_batches=1: calibrate judges by all examples",
    ("tune", "limit_val_batches=0.5"): "limit_val_batches=0.5: tune judges by all examples",
    ("bench", "limit_test_batches=1"): "limit_test_batches=1 has no effect on bench",
    ("test", "fast_dev_run=true"): "fast_dev_run=true: it would give the figures of a batch",
    ("compare", "fast_dev_run=1"): "fast_dev_run=1",
    ("test", "max_steps=3"): "max_steps=3 has no effect on test",
    ("test", "num_sanity_val_steps=1"): "num_sanity_val_steps=1 has no effect",
    ("test", "barebones=true"): "barebones=true",
    ("test", "overfit_batches=1"): "overfit_batches=1 has no effect on test",
    ("test", "strategy=fsdp"): "strategy=fsdp: expected one of",
    ("test", "devices=999"): "devices=999: this machine has",
    ("test", "accelerator=gpu"): "accelerator=gpu",
    ("test", "model_registry=name"): "model_registry",
}
MORE = {
    "compare": ["--strategies=[HSD]"],
    "bench": ["--strategies=[HSD]"],
    "calibrate": ["--strategies=[HSD]"],
    "tune": ["--max-loss=0.5"],
}


@pytest.fixture(autouse=True)
def as_before():
    """Undo what `deterministic` and `benchmark` set for the whole process."""
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = False


def never(*args, **kwargs):
    """Stand in for load_model where no model may be loaded."""
    pytest.fail("the model was loaded")


def sentence(capsys, command, args):
    """Run a command line that is refused; return its one sentence."""
    with pytest.raises(SystemExit) as end:
        command(args)
    said = end.value.code if isinstance(end.value.code, str) else capsys.readouterr().err
    lines = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, said
    assert "Traceback" not in said
    return lines[0]


@pytest.mark.parametrize("option", REFUSED)
def test_a_fit_refuses(monkeypatch, capsys, options, tmp_path, option):
    monkeypatch.setattr(sys, "argv", ["train.py"])
    if option != "precision=16-mixed":  # which depends on the device
        monkeypatch.setattr(hsdlab.cli.training_modules, "load_model", never)
    assert_matches(REFUSED[option], sentence(capsys, train, [*options, f"--trainer.{option}"]))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("subcommand", "option"), NOT_TO_DECODE)
def test_a_decode_refuses(monkeypatch, capsys, tmp_path, subcommand, option):
    monkeypatch.setattr(sys, "argv", ["evaluate.py"])
    given = [subcommand, *decoding_options(tmp_path), *MORE.get(subcommand, []), f"--output={tmp_path / 'out'}"]
    monkeypatch.setattr(hsdlab.modules.decode, "load_model", never)
    assert_matches(NOT_TO_DECODE[subcommand, option], sentence(capsys, evaluate, [*given, f"--trainer.{option}"]))
    assert not (tmp_path / "out").exists()


def assert_matches(pattern, text):
    """Whether a sentence says what it has to."""
    assert re.search(pattern, text), text


@pytest.fixture
def fit(monkeypatch, options, tmp_path):
    """Fit with options of the Trainer, one epoch of six batches unless they say otherwise."""
    monkeypatch.setattr(sys, "argv", ["train.py"])

    def run(*flags):
        made = TrainCLI([*options, "--trainer.max_epochs=1", *(f"--trainer.{flag}" for flag in flags)])
        return made, tmp_path / "out"

    return run


WORK = {  # options: steps that they take, and validations
    "limit_train_batches=2": (2, 1),
    "limit_train_batches=0.5": (3, 1),
    "limit_val_batches=0": (6, 0),
    "limit_val_batches=1": (6, 1),
    "max_steps=4": (4, 0),
    "max_epochs=2 min_epochs=2 min_steps=3": (12, 2),
    "max_time=00:01:00:00": (6, 1),
    "max_epochs=2 check_val_every_n_epoch=2": (12, 1),
    "val_check_interval=2": (6, 3),
    "val_check_interval=0.5": (6, 2),
    "val_check_interval=4 check_val_every_n_epoch=null max_epochs=2": (12, 3),
    "accumulate_grad_batches=2 gradient_clip_algorithm=value": (3, 1),
    "accumulate_grad_batches=4": (2, 1),
    "gradient_clip_val=0": (6, 1),
    "num_sanity_val_steps=0": (6, 1),
    "num_sanity_val_steps=-1": (6, 1),
    "precision=bf16-mixed detect_anomaly=true": (6, 1),
    "precision=bf16-true": (6, 1),
    "precision=64-true deterministic=true": (6, 1),
    "profiler=simple benchmark=true inference_mode=false": (6, 1),
    "profiler=advanced deterministic=warn": (6, 1),
    "reload_dataloaders_every_n_epochs=1 max_epochs=2": (12, 2),
    "logger=false log_every_n_steps=0": (6, 1),
    "logger=CSVLogger logger.save_dir={out}/csv": (6, 1),
    "enable_model_summary=true use_distributed_sampler=false": (6, 1),
    "callbacks=[{class_path: EarlyStopping, init_args: {monitor: val/loss}}]": (6, 1),
}
RARE = [
    "limit_val_batches=1",
    "val_check_interval=0.5",
    "accumulate_grad_batches=4",
    "gradient_clip_val=0",
    "num_sanity_val_steps=-1",
    "precision=bf16-true",
    "precision=64-true deterministic=true",
    "profiler=advanced deterministic=warn",
    "reload_dataloaders_every_n_epochs=1 max_epochs=2",
    "enable_model_summary=true use_distributed_sampler=false",
    "val_check_interval=2",
    "limit_train_batches=2",
]
"""Each has a neighbour that does much the same: they run in `make test-all`."""


@pytest.mark.parametrize("flags", [pytest.param(f, marks=[pytest.mark.slow] * (f in RARE)) for f in WORK])
def test_it_works(fit, tmp_path, flags):
    words = [flags] if flags.startswith("callbacks") else flags.replace("{out}", str(tmp_path)).split()
    made, out = fit(*words)
    steps, validations = WORK[flags]
    assert made.trainer.global_step == steps
    assert made.model._validations == validations
    assert (made.checkpoints.best_step is not None) == (validations > 0)
    assert any((out / "model").glob("*.safetensors"))
    assert (out / "checkpoints/last.ckpt").exists()


@pytest.mark.parametrize("flag", ["true", "2"])
def test_fast_dev_run_leaves_nothing_that_looks_like_a_result(fit, flag, caplog):
    made, out = fit(f"fast_dev_run={flag}")
    assert made.trainer.global_step == {"true": 1, "2": 2}[flag]
    assert not out.exists()


def test_a_limit_decodes_so_many_batches(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["evaluate.py"])
    evaluate(["test", *decoding_options(tmp_path), f"--output={tmp_path / 'out'}", "--trainer.limit_test_batches=2"])
    lines = (tmp_path / "out/predictions.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == [f"test-{i}" for i in (0, 1, 2, 4)]  # of similar length


def test_validation_within_a_step_is_refused(monkeypatch, capsys, options, tmp_path):
    monkeypatch.setattr(sys, "argv", ["train.py"])
    flags = ["--trainer.accumulate_grad_batches=2", "--trainer.val_check_interval=3"]
    assert "val_check_interval=3 validates every 3 batches, in the middle of a step of 2 batches" in sentence(
        capsys, train, [*options, *flags]
    )
    assert not Path(tmp_path / "out" / "model").exists()
