"""`train.py`: whole runs on a tiny model, killed runs, and what is refused before anything is written."""

import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hsdlab import CALM, HSD, LearnedExit, generate, load_model
from hsdlab.cli import train, training_modules
from hsdlab.cli.train import TrainCLI, main
from hsdlab.errors import UserError
from hsdlab.modules import FinetuneModule, LoRA, finetune
from hsdlab.modules.lora import add_lora
from hsdlab.testing import tiny_model
from tests.law_cells import in_turns
from tests.test_configs import ARCHITECTURES, COMMITTED
from tests.tiny_checkpoints import save, tiny_llama, tiny_tokenizer

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").rglob("finetune*.yaml"))
EXIT_CLASSIFIER = ROOT / "configs/experiment/exit_classifier.yaml"
SPLITS = {"train": 11, "validation": 3}
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


@pytest.fixture
def options(tmp_path):
    """A tiny model, eleven training examples in batches of four, and the options that run them."""
    save(tiny_llama(), tmp_path / "base")
    (tmp_path / "data").mkdir()
    for split, number in SPLITS.items():
        lines = [
            {"id": f"{i}", "source": "hello " * (1 + i % 3), "references": [f"hell {i}", "he"]} for i in range(number)
        ]
        text = "\n".join(json.dumps(line) for line in lines)
        (tmp_path / "data" / f"{split}.jsonl").write_text(text, encoding="utf-8")
    return [
        "fit",
        f"--model.name={tmp_path / 'base'}",
        "--model.max_new_tokens=6",
        "--model.learning_rate=0.01",
        "--data=JSONLines",
        f"--data.folder={tmp_path / 'data'}",
        "--data.batch_size=4",
        "--trainer.accelerator=cpu",
        "--trainer.enable_progress_bar=false",
        "--trainer.log_every_n_steps=1",
        "--checkpoint_every=2",
        f"--output={tmp_path / 'out'}",
    ]


@pytest.fixture
def cli(monkeypatch):
    """Run the command line in this process."""

    def run(*args, cls=TrainCLI):
        monkeypatch.setattr(sys, "argv", ["train.py"])
        return cls(args)

    return run


def test_fit_writes_all_and_its_config_runs_again(cli, options, tmp_path, monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(train, "rank_zero_info", said.append)
    skip = "[{class_path: FullDepth}, {class_path: HSD, init_args: {max_exit: 1}}]"
    made = cli(*options, f"--model.skip_strategies={skip}", "--model.lora.r=4", "--trainer.max_epochs=2")
    out = tmp_path / "out"
    assert {path.name for path in out.iterdir()} == {
        "config.yaml",
        "run.json",
        ".hsdlab.written",
        "checkpoints",
        "lightning_logs",
        "model",
    }
    assert {path.name for path in (out / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    loss = made.checkpoints.best_score
    assert said[0] == f"The weights of step {made.checkpoints.best_step} are exported: val/skip_loss={loss:.4g}."
    best = torch.load(out / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    exported = made.model.state_dict()
    assert all(torch.equal(exported[name], weight) for name, weight in best.items())
    load_model(out / "model", device="cpu")
    config = yaml.safe_load((out / "config.yaml").read_text())
    lora = {"r": 4, "lora_alpha": 32, "lora_dropout": 0.0, "target_modules": "all-linear", "use_rslora": False}
    assert config["model"]["lora"].items() >= lora.items()  # and peft's other options
    assert (config["trainer"]["max_epochs"], config["trainer"]["gradient_clip_val"]) == (2, 1.0)
    assert json.loads((out / "run.json").read_text())["config"]["model"]["learning_rate"] == 0.01

    again = cli("fit", f"--config={out / 'config.yaml'}", f"--output={tmp_path / 'again'}")
    assert again.trainer.callback_metrics["val/loss"] == made.trainer.callback_metrics["val/loss"]
    assert [repr(s) for s in again.model.mixture.strategies] == [repr(s) for s in made.model.mixture.strategies]
    assert isinstance(again.config_init.fit.skip, type(made.config_init.fit.skip))


def test_validate_reads_a_checkpoint(cli, options, tmp_path):
    cli(*options, "--trainer.max_epochs=1")
    rest = [option for option in options[1:] if not option.startswith(("--checkpoint_every", "--output"))]
    best = tmp_path / "out" / "checkpoints" / "best.ckpt"
    made = cli("validate", *rest, f"--ckpt_path={best}", "--model.generate_every=1", "--skip=HSD", "--skip.max_exit=1")
    assert isinstance(made.config_init.validate.skip, HSD)
    assert {"val/loss", "val/rougeL", "val/average_layers"} <= made.trainer.callback_metrics.keys()


def logged_losses(folder):
    """train/loss by step out of the event files; what was logged twice has to agree."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    losses = {}
    for file in sorted(folder.rglob("events.*")):
        events = EventAccumulator(str(file)).Reload()
        for event in events.Scalars("train/loss") if "train/loss" in events.Tags()["scalars"] else ():
            assert event.value == pytest.approx(losses.get(event.step, event.value), abs=1e-6)
            losses[event.step] = event.value
    return losses


@pytest.mark.slow
def test_a_run_killed_with_sigkill_goes_on_to_the_same_losses(cli, options, tmp_path, capsys):
    options = [*options, "--model.lora.r=4", "--model.lora.lora_dropout=0.1", "--trainer.max_epochs=3"]
    whole = [*options, f"--output={tmp_path / 'whole'}"]
    cli(*whole)
    last = tmp_path / "out" / "checkpoints" / "last.ckpt"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    # slow enough to be met in the middle: 18 steps with a pause after each
    script = (
        "import time; from hsdlab.modules import FinetuneModule as M; from hsdlab.cli.train import main\n"
        "old = M.on_train_batch_end\n"
        "M.on_train_batch_end = lambda self, *args: (old(self, *args), time.sleep(0.3))[0]\n"
        "main()\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script, *options], env=environment, cwd=ROOT)
    try:
        deadline = time.monotonic() + 120
        while not last.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
    finally:
        process.kill()
        process.wait()
    assert last.exists()
    step = torch.load(last, weights_only=True)["global_step"]
    assert 0 < step < 18
    cli(*options, "--ckpt_path=last")
    assert "did not note all" not in capsys.readouterr().out
    expected = logged_losses(tmp_path / "whole")
    losses = logged_losses(tmp_path / "out")
    assert set(expected) == set(range(18))
    assert losses == pytest.approx(expected, abs=1e-6)
    points = {name: [point[:2] for point in curves(tmp_path / name)] for name in ("whole", "out")}
    assert points["out"] == points["whole"]  # in one run of TensorBoard, each once
    assert exported(tmp_path / "out") == exported(tmp_path / "whole")


def curves(folder):
    """All points of the one run of TensorBoard in a folder, as its files hold them; the throughput left out."""
    (run,) = (folder / "lightning_logs").iterdir()
    points = []
    for file in run.glob("events.*"):
        events = EventAccumulator(str(file), purge_orphaned_data=False).Reload()
        tags = set(events.Tags()["scalars"]) - {"train/tokens_per_second", "epoch"}
        points += [(tag, event.step, event.value) for tag in tags for event in events.Scalars(tag)]
    return sorted(points)


def exported(folder):
    """The weights of an export."""
    return {path.name: path.read_bytes() for path in (folder / "model").glob("*.safetensors")}


class Killed(BaseException):
    """A kill: no handler of an Exception sees it."""


@pytest.mark.parametrize("hook", in_turns(["on_validation_end", "on_validation_start", "on_train_end"], 3))
def test_a_run_killed_around_a_validation_exports_what_an_unbroken_one_does(monkeypatch, cli, options, tmp_path, hook):
    """As in finetune_docstrings.yaml: checkpoints and validations are due at the same steps, the run has two."""
    proportions = ["--trainer.max_steps=6", "--trainer.val_check_interval=3", "--checkpoint_every=3"]
    options = [*options, *proportions, "--model.lora.r=4", "--trainer.num_sanity_val_steps=0"]
    cli(*options, f"--output={tmp_path / 'whole'}")
    calls = []

    def kill(*args):
        calls.append(hook)
        if len(calls) == (1 if hook == "on_train_end" else 2):
            raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(FinetuneModule, hook, kill)
        with pytest.raises(Killed):
            cli(*options)
    assert not (tmp_path / "out" / "model").exists()
    cli(*options, "--ckpt_path=last")
    assert exported(tmp_path / "out") == exported(tmp_path / "whole")
    assert curves(tmp_path / "out") == curves(tmp_path / "whole")
    validated = [step for tag, step, _ in curves(tmp_path / "out") if tag == "val/loss"]
    assert validated == [2, 5]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("best", "There is no checkpoint .*best.ckpt"),
        ("hpc", "There is no checkpoint hpc"),
        ("registry:name", "There is no checkpoint registry:name"),
        ("https://localhost/last.ckpt", "There is no checkpoint https:"),
        ("{tmp}/empty.ckpt", "empty.ckpt is empty"),
        ("{tmp}/garbage.ckpt", "garbage.ckpt cannot be read"),
        ("{tmp}/code.ckpt", "code.ckpt holds more than weights .* hsdlab runs no code of a checkpoint"),
        ("{tmp}/base/model.safetensors", "model.safetensors is no checkpoint of train.py: it lacks state_dict"),
    ],
)
@pytest.mark.parametrize("subcommand", ["fit", "validate"])
def test_what_is_no_checkpoint_is_said_before_a_model_is_loaded(
    monkeypatch, options, tmp_path, subcommand, path, message
):
    (tmp_path / "empty.ckpt").write_bytes(b"")
    (tmp_path / "garbage.ckpt").write_bytes(b"PK\x03\x04")
    torch.save(Path("x"), tmp_path / "code.ckpt")
    if subcommand == "validate":
        message = "validate has no run of its own" if path == "best" else message
        options = [option for option in options[1:] if not option.startswith(("--checkpoint_every", "--output"))]
        options = ["validate", *options]
    monkeypatch.setattr(sys, "argv", ["train.py"])
    monkeypatch.setattr(training_modules, "load_model", lambda *args, **kwargs: pytest.fail("the model was loaded"))
    with pytest.raises(SystemExit, match=f"^error: .*{message}" if path != "best" or subcommand == "fit" else None):
        main([*options, f"--ckpt_path={path.format(tmp=tmp_path)}"])
    assert not (tmp_path / "out").exists()


def test_a_best_checkpoint_that_was_changed_is_not_exported(monkeypatch, options, tmp_path):
    main([*options, "--trainer.max_epochs=1"])
    best = tmp_path / "out" / "checkpoints" / "best.ckpt"
    before = exported(tmp_path / "out")
    last = torch.load(best.with_name("last.ckpt"), weights_only=True)
    last["callbacks"]["Checkpoints"]["best_step"] = 2
    half = best.read_bytes()[:100]
    best.unlink()  # one file with last.ckpt
    best.write_bytes(half)
    torch.save(last, best.with_name("last.ckpt"))
    written = tmp_path / "out" / ".hsdlab.written"
    written.write_text(written.read_text().replace("finished", "removed"))
    monkeypatch.setattr(sys, "argv", ["train.py"])
    with pytest.raises(SystemExit, match=r"^error: The checkpoint .*best\.ckpt cannot be read"):
        main([*options, "--trainer.max_epochs=1", "--ckpt_path=last"])
    assert exported(tmp_path / "out") == before


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--model.learning_rate=0"], "learning_rate=0.0: expected more than 0"),
        (["--model.lora.r=0"], r"^error: lora\.r=0: expected 1 or more"),
        (
            ["--model.lora.layers_to_transform=[0]"],
            r"^error: lora: peft refuses it: `layers_to_transform` cannot be used",
        ),
        (
            ["--model.lora.target_modules=[c_attn]"],
            "'c_attn' matches no layer of LlamaForCausalLM; its linear ones are down_proj",
        ),
        (
            ["--model.deep_supervision.scale=2"],
            r"^error: deep_supervision\.scale=2\.0: expected more than 0 and 1 at most",
        ),
        (["--model.layer_dropout.rate=1"], r"^error: layer_dropout\.rate=1\.0: expected 0 or more, and less than 1"),
        (["--model.skip_strategies=[CALM]"], "CALM.*decides while it decodes"),
        (
            ["--model.skip_strategies=[{class_path: HSD, init_args: {max_exit: 9}}]"],
            "max_exit=9 is beyond this model's 3",
        ),
        (["--skip=HSD", "--skip.max_exit=9"], "max_exit=9 is beyond this model's 3 layers"),
        (["--skip=HSD", "--skip.max_exit=1"], r"--skip\) would have no effect: .* --model\.generate_every=1 to decode"),
        (["--data.folder=nowhere"], "No folder nowhere"),
        (["--trainer.precision=16-mixed"], "precision=16-mixed is not available on the CPU: give bf16-mixed"),
    ],
    ids=[
        "learning-rate",
        "lora-rank",
        "lora-options",
        "lora-target",
        "supervision",
        "layer-dropout",
        "not-scheduled",
        "too-deep",
        "skip-too-deep",
        "skip-without-effect",
        "no-data",
        "precision",
    ],
)
def test_what_is_wrong_is_said_before_anything_is_written(monkeypatch, options, tmp_path, more, message):
    monkeypatch.setattr(sys, "argv", ["train.py"])
    with pytest.raises(SystemExit, match=message):
        main([*options, *more])
    assert not (tmp_path / "out").exists()


def test_fit_without_a_train_split_is_an_error(monkeypatch, options, tmp_path):
    (tmp_path / "data" / "train.jsonl").unlink()
    monkeypatch.setattr(sys, "argv", ["train.py"])
    with pytest.raises(SystemExit, match=r"No file .*train\.jsonl; .*: validation\.jsonl"):
        main(options)


def refused(monkeypatch, *args):
    """Run `main`, expect that it refuses, and return what it says."""
    monkeypatch.setattr(sys, "argv", ["train.py"])
    with pytest.raises(SystemExit) as end:
        main(args)
    return str(end.value)


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_that_no_run_wrote_is_refused_whatever_is_asked_for(monkeypatch, options, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.yaml").write_text("mine")
    for more in ([], ["--ckpt_path=last"], ["--overwrite"]):
        text = refused(monkeypatch, *options, *more)
        assert "is not empty, and no run of hsdlab wrote what is in it (config.yaml)" in text, more
        assert contents(tmp_path / "out") == {"config.yaml": b"mine"}


@pytest.mark.slow
def test_last_begins_anew_where_there_is_no_checkpoint_of_the_same_run(monkeypatch, cli, options, tmp_path, capsys):
    """Also in a new folder: a job that may be started again gives it from the beginning."""
    out = tmp_path / "out"
    cli(*options, "--ckpt_path=last", "--trainer.max_epochs=1")
    whole = contents(out)
    assert "checkpoints/last.ckpt" in whole
    for file in [*(out / "checkpoints").iterdir(), *(out / "model").iterdir()]:
        file.unlink()  # as if it had been killed before the first checkpoint
    (out / "model").rmdir()
    written = out / ".hsdlab.written"
    written.write_text(written.read_text().replace("finished run\n", ""))
    (out / "notes.txt").write_text("mine")
    assert "  model.learning_rate: 0.01 then, 0.02 now" in refused(
        monkeypatch, *options, "--ckpt_path=last", "--trainer.max_epochs=1", "--model.learning_rate=0.02"
    )
    assert "is not empty" in refused(monkeypatch, *options, "--trainer.max_epochs=1")
    cli(*options, "--ckpt_path=last", "--trainer.max_epochs=1")
    again = contents(out)
    assert again.pop("notes.txt") == b"mine"
    logs = {name for name in again if name.startswith("lightning_logs")}
    assert len(logs) == 2  # those of before are gone
    assert {*again} - logs == {name for name in whole if not name.startswith("lightning_logs")}
    assert again["model/model.safetensors"] == whole["model/model.safetensors"]


@pytest.mark.slow
def test_a_finished_run_is_never_trained_anew_without_overwrite(monkeypatch, cli, options, tmp_path, capsys):
    options = [*options, "--checkpoint_every=100", "--trainer.max_epochs=1"]  # it ends before any last.ckpt
    out = tmp_path / "out"
    cli(*options)
    before = contents(out)
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        cli(*options, "--ckpt_path=last")
    assert end.value.code == 0
    assert f"The run in {out} is finished." in capsys.readouterr().out
    assert "max_epochs: 1 then, 2 now" in refused(monkeypatch, *options, "--ckpt_path=last", "--trainer.max_epochs=2")
    assert "or resume the run in it: --ckpt_path=last" in refused(monkeypatch, *options)
    assert "give one of them" in refused(monkeypatch, *options, "--ckpt_path=last", "--overwrite")
    assert contents(out) == before
    mine = ["notes.txt", "checkpoints/notes.txt", "predictions_gold.jsonl", "model/notes.txt"]
    for name in mine:
        (out / name).write_text("mine")
    assert "holds model/notes.txt, which no run of hsdlab wrote" in refused(monkeypatch, *options, "--overwrite")
    (out / mine.pop()).unlink()  # the folder is replaced as a whole
    cli(*options, "--overwrite", "--model.learning_rate=0.02")
    after = contents(out)
    assert sorted(name for name, content in after.items() if content == b"mine") == sorted(mine)
    assert after["model/model.safetensors"] != before["model/model.safetensors"]
    assert len({name for name in after if name.startswith("lightning_logs")}) == 2


@pytest.mark.parametrize("what", ["examples", "weights", "tokenizer", "config"])
def test_a_resumed_run_whose_model_or_data_changed_is_refused(what, monkeypatch, cli, options, tmp_path):
    options = [*options, "--trainer.max_epochs=1"]
    cli(*options)
    written = tmp_path / "out" / ".hsdlab.written"
    written.write_text(written.read_text().replace("finished run\n", ""))
    before = contents(tmp_path / "out")
    file = (
        tmp_path
        / {
            "examples": "data/train.jsonl",
            "weights": "base/model.safetensors",
            "tokenizer": "base/tokenizer.json",
            "config": "base/config.json",
        }[what]
    )
    if what == "weights":
        model = tiny_llama()
        with torch.no_grad():
            model.model.layers[1].mlp.up_proj.weight[3, 5] += 0.001
        save(model, tmp_path / "base")
    else:
        old, new = {
            "examples": ("hell 3", "help 3"),
            "tokenizer": ('"add_prefix_space": false', '"add_prefix_space": true'),
            "config": ('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-04'),
        }[what]
        text = file.read_text()
        assert old in text
        file.write_text(text.replace(old, new))
    assert f"{what} are not those that the run" in refused(monkeypatch, *options, "--ckpt_path=last").replace(
        "settings in the model's config", "config"
    ).replace("tokenizer, its chat template or its special tokens", "tokenizer")
    assert contents(tmp_path / "out") == before


def test_a_start_that_failed_is_not_in_the_way_of_the_next(monkeypatch, cli, options, tmp_path):
    """What is wrong shows only in the Trainer, after the folder was made."""
    out = tmp_path / "new" / "out"
    options = [*options, f"--output={out}", "--trainer.max_epochs=1"]
    setup = FinetuneModule.setup

    def fails(self, stage):
        raise UserError("no")

    monkeypatch.setattr(FinetuneModule, "setup", fails)
    assert refused(monkeypatch, *options) == "error: no"
    assert not out.parent.exists()
    monkeypatch.setattr(FinetuneModule, "setup", setup)
    cli(*options, "--model.learning_rate=0.02")
    assert (out / "model").is_dir()


class InstantiateOnly(TrainCLI):
    """Makes all objects; reads no data and writes nothing."""

    def before_instantiate_classes(self): ...

    def after_instantiate_classes(self): ...

    def _run_subcommand(self, subcommand): ...


@pytest.mark.parametrize("path", in_turns(CONFIGS, 2), ids=lambda path: path.stem)
def test_the_configs_instantiate_from_the_command_in_their_header(path, cli, monkeypatch):
    monkeypatch.setattr(
        training_modules, "load_model", lambda name, **_: (tiny_model(num_layers=30, eos_token_id=1), tiny_tokenizer())
    )
    monkeypatch.chdir(ROOT)
    (command,) = [line for line in path.read_text().splitlines() if line.startswith("# hsdlab fit ")]
    matrices = LoRA(r=4)  # since an adapter of SmolLM2 does not fit the small model
    monkeypatch.setattr(finetune, "continue_lora", lambda model, *_: (add_lora(model, matrices), matrices))
    made = cli(*shlex.split(command)[2:], cls=InstantiateOnly)
    results = path.parent.name == "results"
    assert made.config.fit.output == (f"runs/results/{path.stem[9:]}" if results else f"runs/{path.stem}")
    assert made.trainer.precision == ("32-true" if path.stem == "finetune_e2e_exits" else "bf16-mixed")
    if made.model.mixture:
        assert len(made.model.mixture.strategies) == len(made.model.mixture.weights)
        assert sum(made.model.mixture.weights) == pytest.approx(1)


def test_null_leaves_out_the_adapter_of_a_config(cli, monkeypatch):
    monkeypatch.setattr(
        training_modules, "load_model", lambda name, **_: (tiny_model(num_layers=30, eos_token_id=1), tiny_tokenizer())
    )
    monkeypatch.chdir(ROOT)
    made = cli("fit", "--config=results/finetune_e2e_exits", "--model.initial_adapter=null", cls=InstantiateOnly)
    assert made.config.fit.model.initial_adapter is None
    assert made.model.lora is None


TRAINING = sorted((ROOT / "configs/training").glob("*.yaml"))


MODELS = ["gpt2", "phi2", "opt_1.3b", "smollm2_135m"]
PAIRS = [  # each config on one model in `make test`
    pytest.param(path, model, marks=[pytest.mark.slow] * (model != MODELS[number % 4]), id=f"{model}-{path.stem}")
    for number, path in enumerate(TRAINING)
    for model in MODELS
]


@pytest.mark.parametrize(("path", "model"), PAIRS)
def test_each_training_config_fits_each_model(path, model, cli, monkeypatch):
    family, num_layers = ARCHITECTURES[
        yaml.safe_load((ROOT / f"configs/model/{model}.yaml").read_text())["model"]["name"]
    ]
    monkeypatch.setattr(
        training_modules,
        "load_model",
        lambda name, **_: (tiny_model(family, num_layers=num_layers, eos_token_id=1), tiny_tokenizer()),
    )
    monkeypatch.chdir(ROOT)
    (command,) = [line for line in path.read_text().splitlines() if line.startswith("# hsdlab fit ")]
    assert f"--config training/{path.stem}" in command
    arguments = [argument for argument in shlex.split(command)[2:] if argument != "--config"]
    configs = [f"--config={name}" for name in arguments[1:] if not name.startswith("model/")]
    made = cli("fit", f"--config=configs/model/{model}.yaml", *configs, cls=InstantiateOnly)
    stated = COMMITTED[f"training/{path.name}"]["model"]
    assert made.model.learning_rate == stated.get("learning_rate", 5e-5)
    assert (made.model.lora is not None) == ("training/lora" in command)
    assert (made.model.mixture is not None) == path.stem.startswith(("skip_aware", "for_acceptance"))
    assert (made.model.deep_supervision is not None) == (path.stem in ("deep_supervision", "exits"))
    assert (made.model.layer_dropout is not None) == (path.stem == "layer_dropout")


def test_an_exit_classifier_is_trained_and_written(options, cli, tmp_path):
    untrained = [option for option in options if not option.startswith("fit")]
    cli("fit_exit_classifier", *untrained, "--trainer.max_epochs=1")
    written = json.loads((tmp_path / "out/exit_classifier.json").read_text())
    assert written["run"]["config"]["model"]["name"] == str(tmp_path / "base")
    for name in ("agreement", "f1", "auroc", "calibration_error", "confidence", "rate", "count"):
        assert len(written[name]) == 2, name  # of the three layers all but the last
    assert (tmp_path / "out/exit_classifier.png").read_bytes().startswith(b"\x89PNG")
    (run,) = (tmp_path / "out/lightning_logs").iterdir()
    assert EventAccumulator(str(run)).Reload().Tags()["images"] == ["exit_classifier"]
    model, _ = load_model(str(tmp_path / "base"))
    classifier = str(tmp_path / "out/exit_classifier.safetensors")
    out = generate(
        model,
        input_ids=torch.tensor([[5, 6, 7]]),
        strategy=CALM(threshold=0.0, measure="classifier", classifier=classifier),
        max_new_tokens=4,
    )
    assert out.trace.average_layers == 1  # any confidence is 0 or more


def test_an_exit_router_is_trained_and_written(options, cli, tmp_path):
    untrained = [option for option in options if not option.startswith("fit")]
    cli("fit_exit_router", *untrained, "--trainer.max_epochs=1", "--model.width=4")
    written = json.loads((tmp_path / "out/exit_router.json").read_text())
    assert written["layers"] == [0, 1]
    assert written["network"] == "exit router"
    assert (tmp_path / "out/exit_router.png").read_bytes().startswith(b"\x89PNG")
    model, _ = load_model(str(tmp_path / "base"))
    strategy = LearnedExit(str(tmp_path / "out/exit_router.safetensors"), threshold=0.0)
    out = generate(model, input_ids=torch.tensor([[5, 6, 7]]), strategy=strategy, max_new_tokens=4)
    assert out.trace.average_layers == 1


def test_the_exit_classifiers_config_instantiates(cli, monkeypatch):
    monkeypatch.setattr(training_modules, "load_model", lambda name, **_: (tiny_model(num_layers=30), tiny_tokenizer()))
    made = cli("fit_exit_classifier", f"--config={EXIT_CLASSIFIER}", cls=InstantiateOnly)
    assert made.model.quality == {}
    assert made.trainer.max_steps == 60


def test_an_exit_classifier_takes_no_strategy(options, cli, capsys):
    with pytest.raises(SystemExit):
        cli("fit_exit_classifier", *[option for option in options if option != "fit"], "--skip=HSD")
    assert "skip" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "figure"),
    [
        ("--model.seed=1", "val/loss"),
        ("--model.skip_strategies=[FullDepth]", "val/skip_loss"),
        ("--model.deep_supervision.layers=1", "val/supervised_loss"),
        ("--model={deep_supervision: {layers: 1}, skip_strategies: [FullDepth]}", "val/supervised_loss"),
    ],
)
def test_the_best_weights_are_chosen_by_what_is_trained(option, figure, options, cli):
    class Made(TrainCLI):
        def _run_subcommand(self, subcommand): ...

    made = cli(*options, option, cls=Made)
    assert made.checkpoints.monitor == figure


def test_there_are_configs():
    docstrings = {f"finetune_docstrings{kind}" for kind in ("", "_plain", "_exits")}
    kinds = ("plain", "skip_aware", "exits")
    results = {f"finetune_{data}_{kind}" for data in ("e2e", "common_gen") for kind in kinds}
    results |= {"finetune_e2e_exits_and_schedules"}
    assert {path.stem for path in CONFIGS} == docstrings | results | {"finetune_e2e_prompts"}
