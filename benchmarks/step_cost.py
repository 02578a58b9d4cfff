"""Print what a training step costs against a plain one, for the table of docs/training.md.

    OMP_NUM_THREADS=1 python -m benchmarks.step_cost

CPU seconds of forward and backward pass, the sides taking turns on the same batches; the first batch warms up. Needs
the data of `FOLDER`.
"""

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import Tensor

from hsdlab import HSD, FullDepth, load_model
from hsdlab.data import JSONLines
from hsdlab.decoding.layer_outputs import layer_outputs
from hsdlab.modules import DeepSupervision, FinetuneModule, LoRA
from hsdlab.modules.deep_supervision import supervised_loss

FOLDER = "data/common_gen"
BATCHES, ROWS = 8, 16
Batch = dict[str, Tensor]


def cpu_seconds(module: FinetuneModule, loss: Callable[[], Tensor]) -> float:
    """Return the CPU seconds of one forward and backward pass in bfloat16."""
    start = time.process_time()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss()
    value.backward()
    module.zero_grad()
    return time.process_time() - start


def main() -> None:
    """Print a row for each way of training."""
    model, tokenizer = load_model("embedded:smollm2-135m", device="cpu", attention="eager")
    strategies = [FullDepth(), HSD(1, 0, 18), HSD(2, 0, 12), HSD(2, 0, 8), HSD(3, 0, 4)]
    module = FinetuneModule(model, tokenizer, 30, lora=LoRA(), skip_strategies=strategies, distillation=0.5)
    data = JSONLines(folder=FOLDER, prompt="{source}\n", batch_size=ROWS, group_by_length=True)
    data.connect(tokenizer, max_target_tokens=30)
    rows = [row % len(strategies) for row in range(ROWS)]

    def deep(batch: Batch, **options: Any) -> Tensor:
        supervision = DeepSupervision(**options)
        with layer_outputs(module.model) as outputs:
            logits = module.training_logits(batch)
        weights = supervision.layer_weights(len(outputs), batch=3)
        return supervised_loss(module.model, outputs, logits, batch, weights, supervision)

    sixth = {"layers": 6}
    sides: dict[str, Callable[[Batch], Tensor]] = {
        "plain": module.loss,
        "one strategy a batch": lambda batch: module.loss(batch, [3]),
        "one strategy an example": lambda batch: module.loss(batch, rows),
        "one an example, with distillation": lambda batch: module.training_loss(batch, rows),
        "deep supervision of every 6th layer in turn": lambda batch: deep(batch, rotation=6),
        "deep supervision of all layers": deep,
        "exits after every 6th layer, a quarter of the tokens": lambda batch: deep(batch, **sixth, positions=0.25),
        "the same, with distillation": lambda batch: deep(batch, **sixth, positions=0.25, distillation=0.9),
        "exits after every 3rd layer, an eighth, with distillation": lambda batch: deep(
            batch, layers=3, positions=0.125, distillation=0.9
        ),
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for batch, _ in zip(data.train_dataloader(), range(BATCHES), strict=False):
        for name, loss in sides.items():
            seconds[name].append(cpu_seconds(module, lambda loss=loss, batch=batch: loss(batch)))
    for name, side in seconds.items():
        ratios = [ours / plain for ours, plain in zip(side[1:], seconds["plain"][1:], strict=True)]
        print(f"| {name} | {median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}] | {median(side[1:]):.2f} s |")


if __name__ == "__main__":
    main()
