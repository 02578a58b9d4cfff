"""A run prints nothing of libraries that the user can neither use nor mend."""

import logging
import re
import warnings
from pathlib import Path

import pytest
from transformers.utils import logging as transformers_logging

import hsdlab.cli
from hsdlab.cli.noise import without_noise
from tests.forked import ended
from tests.tiny_checkpoints import save, tiny_llama
from tests.tiny_runs import write_examples

PROGRAM = Path(hsdlab.cli.__path__[0]) / "__main__.py"
NOISE = re.compile(
    r"available: False|Tip:|Loading weights|stepping batches|weights_only|LeafSpec|is_gradient_check"
    "|instantiate_classes"
)


@pytest.mark.xdist_group("processes")
@pytest.mark.parametrize("command", ["test", pytest.param("fit", marks=pytest.mark.slow)])
def test_a_tiny_run_prints_none_of_it(command, tmp_path):
    save(tiny_llama(), tmp_path / "model")
    write_examples(tmp_path / "data")
    for split in ("train", "validation"):
        (tmp_path / f"data/{split}.jsonl").write_bytes((tmp_path / "data/test.jsonl").read_bytes())
    words = [f"--model.name={tmp_path / 'model'}", f"--data.folder={tmp_path / 'data'}", f"--output={tmp_path / 'out'}"]
    words += ["--model.max_new_tokens=4", "--trainer.accelerator=cpu"]
    words += ["--trainer.max_steps=1", "--model.lora.r=2"] if command == "fit" else ["--model.metrics=[rouge]"]
    done = ended(PROGRAM, [command, *words], cwd=tmp_path)
    assert done.code == 0, done.err
    assert NOISE.search(done.out + done.err) is None
    assert str(tmp_path / "out") in done.out + done.err  # it still says where the results are


def test_other_messages_of_the_same_libraries_stay(capsys, monkeypatch):
    logger, heard = logging.getLogger("lightning.pytorch"), []
    handler = logging.Handler()
    handler.emit = lambda record: heard.append(record.getMessage())
    logger.addHandler(handler)
    monkeypatch.setattr(logger, "level", logging.INFO)  # a run before may have changed it
    logger.manager._clear_cache()
    try:
        with without_noise(), warnings.catch_warnings(record=True) as given:
            for text in ("GPU available: False, used: False", "GPU available: True (cuda), used: True"):
                logger.warning(text)
            warnings.warn("`is_gradient_checkpointing` is odd", FutureWarning, stacklevel=1)
            for name in ("Loading weights", "Fetching"):
                list(transformers_logging.tqdm(range(2), desc=name))
    finally:
        logger.removeHandler(handler)
    assert heard == ["GPU available: True (cuda), used: True"]
    assert len(given) == 1
    shown = capsys.readouterr().err
    assert "Fetching" in shown
    assert "Loading weights" not in shown
