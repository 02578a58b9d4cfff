"""Bad inputs: each is one sentence with cause and cure, within seconds, without a traceback, and nothing is written."""

import re
import shutil
import sys
import time
from pathlib import Path

import pytest

from hsdlab.cli.evaluate import main as evaluate
from hsdlab.cli.train import main as train
from tests.cli.bad_inputs import RUN, TABLE, TO_REPORT, TO_RESUME, BadInput
from tests.forked import ended
from tests.law_cells import in_turns
from tests.tiny_checkpoints import save, tiny_llama
from tests.tiny_runs import write_examples

ROOT = Path(__file__).parents[2]
ADVICE = re.compile(r"trust_remote_code|weights_only|allow_pickle|torch\.load|Traceback")
SECONDS = 20  # most take 0.1; other processes may hold the machine


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A model folder, a data folder, and a run that finished."""
    folder = tmp_path_factory.mktemp("tiny")
    save(tiny_llama(), folder / "model")
    write_examples(folder / "data")
    shutil.copy(folder / "data/test.jsonl", folder / "data/train.jsonl")
    evaluate(["test", *common("test", folder / "model", folder / "data"), f"--output={folder / 'run'}"])
    return folder


def common(command, model, data):
    """The options of a run that is well."""
    options = [
        f"--model.name={model}",
        "--model.max_new_tokens=6",
        f"--data.folder={data}",
        "--data.batch_size=2",
        "--trainer.accelerator=cpu",
        "--trainer.enable_progress_bar=false",
    ]
    return options if command.startswith("train.py") else [*options, "--model.num_beams=1", "--model.metrics=[rouge]"]


def words_of(case: BadInput, tiny: Path, tmp: Path) -> list[str]:
    """Write what the case needs; return its command line, without the program."""
    for name, content in case.files.items():
        (tmp / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    model = tiny / "model"
    if case.model is not None:
        model = Path(shutil.copytree(model, tmp / "model"))
        case.model(model)
    given = [
        word.replace("{model}", str(model)).replace("{data}", str(tiny / "data")).replace("{tmp}", str(tmp))
        for word in case.words
    ]
    options = []
    if case.common:
        options = common(case.command, model, tiny / "data")
        options += [] if case.command == "train.py validate" else [f"--output={tmp / 'output'}"]
        if any(word.startswith("--data=") for word in given):
            options = [option for option in options if not option.startswith("--data.folder")]
    return [case.command.removeprefix("train.py "), *options, *given]


def refused(monkeypatch, capsys, command, words):
    """Run a command that is to be refused; return the exit code, the sentence and the seconds."""
    monkeypatch.setattr(sys, "argv", ["evaluate.py"])
    start = time.perf_counter()
    with pytest.raises(SystemExit) as end:
        (train if command.startswith("train.py") else evaluate)(words)
    seconds = time.perf_counter() - start
    code, said = end.value.code, capsys.readouterr().err
    if isinstance(code, str):  # which the interpreter prints, and ends with 1
        code, said = RUN, f"{said}{code}\n"
    return code, said[said.index("error: ") :], seconds


def check_sentence(said, patterns):
    """Check a message: it names cause and cure, on one line, and gives no advice that switches a safeguard off."""
    for pattern in patterns:
        assert re.search(pattern, said), said
    assert not ADVICE.search(said)
    sentence, *rest = said.strip().splitlines()
    assert rest in ([], ["For the options and their meaning add --help"]), said
    assert len(sentence) < 1100


@pytest.mark.parametrize("name", in_turns(TABLE, 3))
def test_a_bad_input_is_one_sentence(name, tiny, tmp_path, monkeypatch, capsys):
    case = TABLE[name]
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    code, said, seconds = refused(monkeypatch, capsys, case.command, words_of(case, tiny, tmp_path))
    sys.modules.pop("own_module", None)
    check_sentence(said, case.says)
    assert code == case.code
    assert not (tmp_path / "output").exists()
    assert seconds < SECONDS


@pytest.mark.parametrize("name", TO_REPORT)
def test_a_damaged_run_is_not_drawn(name, tiny, tmp_path, monkeypatch, capsys):
    change, *says = TO_REPORT[name]
    change(Path(shutil.copytree(tiny / "run", tmp_path / "run")))
    code, said, _ = refused(monkeypatch, capsys, "report", ["report", str(tmp_path / "run")])
    check_sentence(said, says)
    assert code == RUN


@pytest.mark.parametrize("name", TO_RESUME)
def test_a_damaged_run_does_not_go_on(name, tiny, tmp_path, monkeypatch, capsys):
    change, *says = TO_RESUME[name]
    folder = Path(shutil.copytree(tiny / "run", tmp_path / "run"))
    change(folder)
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    words = ["test", *common("test", tiny / "model", tiny / "data"), f"--output={folder}"]
    code, said, _ = refused(monkeypatch, capsys, "test", words)
    check_sentence(said, says)
    assert code == RUN
    assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before


def test_the_table_holds_every_command():
    assert len(TABLE) + len(TO_REPORT) + len(TO_RESUME) >= 120
    assert {case.command for case in TABLE.values()} >= {
        *("test", "predict", "compare", "bench", "inspect", "calibrate", "tune", "count_tokens", "report"),
        *("train.py fit", "train.py validate", "train.py fit_exit_classifier"),
    }


PROCESSES = {
    "own: raises": (),
    "config: an alias bomb": (),
    **dict.fromkeys(
        (
            *(
                "option: misspelt of a data set",
                "class: os.system",
                "data: a lone surrogate",
                "model: cut off",
                "own: exits on import",
            ),
            *("trainer: strategy of fit", "report nowhere", "model: a template that raises"),
        ),
        pytest.mark.slow,
    ),
}


@pytest.mark.xdist_group("processes")
@pytest.mark.parametrize("name", [pytest.param(name, marks=marks) for name, marks in PROCESSES.items()])
def test_a_bad_command_is_one_sentence(name, tiny, tmp_path):
    """As a process of its own: nothing but the sentence, and the exit code."""
    case = TABLE.get(name) or TABLE[f"option: {name}"]
    words = words_of(case, tiny, tmp_path)
    program = "train.py" if case.command.startswith("train.py") else "evaluate.py"
    done = ended(ROOT / program, words, cwd=tmp_path)
    check_sentence(done.err[done.err.index("error: ") :], case.says)
    assert "Traceback" not in done.err
    assert done.code == case.code
    assert not (tmp_path / "output").exists()
