"""Memory: steady over thousands of decoded examples, and one copy of the model however many strategies decode."""

import gc
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback

from hsdlab.testing import tiny_model
from tests.forked import CONTEXT
from tests.runs.kills import command
from tests.tiny_checkpoints import save, tiny_llama
from tests.tiny_runs import write_examples

EXAMPLES, BATCH, SETTLED = 2000, 8, 400
"""How many are decoded, how many at once, and after how many the allocator has found its size."""


class Watch(Callback):
    """Writes a line into a file after each test batch: the examples so far, resident bytes, bytes of all tensors.

    Args:
        file: Of the lines.
        tensors: Whether to sum the tensors, which takes long.
    """

    def __init__(self, file: str, tensors: bool = False) -> None:
        self.file = Path(file)
        self.tensors = tensors

    def on_test_batch_end(self, trainer, module, outputs, batch, batch_idx, dataloader_idx=0):
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        with self.file.open("a") as file:
            file.write(f"{(batch_idx + 1) * BATCH} {pages * 4096} {_tensor_bytes() if self.tensors else 0}\n")


def _tensor_bytes() -> int:
    storages = {}
    for each in gc.get_objects():
        if isinstance(each, torch.Tensor):
            storage = each.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def watched(folder, *args):
    """Run `evaluate.py` in a process of its own; return what Watch wrote."""
    process = CONTEXT.Process(
        target=command,
        args=(
            "evaluate",
            [
                *args,
                f"--model.name={folder / 'model'}",
                "--data=JSONLines",
                f"--data.folder={folder / 'data'}",
                f"--data.batch_size={BATCH}",
                "--model.metrics=[rouge,bleu]",
                "--trainer.accelerator=cpu",
                "--trainer.enable_progress_bar=false",
                f"--output={folder / 'out'}",
            ],
        ),
    )
    process.start()
    process.join()
    assert process.exitcode == 0
    return [[int(word) for word in line.split()] for line in (folder / "watched").read_text().splitlines()]


def watch(folder, tensors=False):
    options = f"{{file: {folder / 'watched'}, tensors: {str(tensors).lower()}}}"
    return f"--trainer.callbacks={{class_path: tests.runs.test_memory.Watch, init_args: {options}}}"


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the resident memory of Linux")
def test_memory_is_steady_over_two_thousand_examples(tmp_path):
    save(tiny_llama(), tmp_path / "model")
    write_examples(tmp_path / "data", EXAMPLES)
    lines = [  # sources of one length, or the longest batch alone makes the memory grow
        f'{{"id": "{number}", "source": "hello {number:04}", "references": ["a hello", "hell"]}}'
        for number in range(EXAMPLES)
    ]
    (tmp_path / "data" / "test.jsonl").write_text("\n".join(lines))
    args = ("test", "--skip=HSD", "--skip.max_exit=2", "--model.num_beams=4", "--model.max_new_tokens=10")
    lines = watched(tmp_path, *args, watch(tmp_path))
    assert lines[-1][0] == EXAMPLES
    settled = next(line[1] for line in lines if line[0] >= SETTLED)
    assert max(line[1] for line in lines) < 1.02 * settled


@pytest.mark.slow
def test_a_comparison_holds_one_copy_of_the_model(tmp_path):
    model = tiny_model("llama", hidden_size=256, vocab_size=300, dtype=torch.float32)
    weights = sum(parameter.nbytes for parameter in model.parameters())
    save(model, tmp_path / "model")
    write_examples(tmp_path / "data", BATCH)
    strategies = "--strategies=[{class_path: HSD, init_args: {max_exit: 2}}, {class_path: CALM}]"
    lines = watched(tmp_path, "compare", strategies, "--model.max_new_tokens=4", watch(tmp_path, tensors=True))
    assert len(lines) == 2  # one batch warms up, the other is decoded under all strategies
    assert all(weights <= line[2] < 1.3 * weights for line in lines), (weights, lines)
