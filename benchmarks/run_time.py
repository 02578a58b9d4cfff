"""Print what whole runs take against the alternatives, for docs/performance.md. Needs the prepared data.

    python -m benchmarks.run_time compare                # 8 strategies on CNN/DM: `compare` over 8 single runs
    python -m benchmarks.run_time evaluate               # E2E's test set, 4 beams: `test` over a plain loop
    python -m benchmarks.run_time evaluate --examples 96 --dtype float32

Both sides of a case run in one process on one loaded model, and all their seconds count: of `hsdlab`, also tables,
pictures and prediction files. `compare` and the single runs take turns in rounds. The plain loop decodes a batch after
each batch of `test`. Ratios are printed for all batches, and with quartiles over rounds or groups of batches.
"""

import argparse
import contextlib
import io
import logging
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import Callback, Trainer
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import hsdlab
from hsdlab import FullDepth, SkipStrategy, load_model
from hsdlab.cli.configs import config_files
from hsdlab.data import Example, JSONLines
from hsdlab.modules import DecodeModule
from hsdlab.runs.compare import compare
from hsdlab.runs.test import test
from hsdlab.runs.timing import ratio_spread

RESULTS = Path(__file__).parents[1] / "configs" / "results" / "evaluate_e2e.yaml"
GROUP = 5  # batches of `evaluate` that one ratio is over


class LongArticles(JSONLines):
    """The articles whose prompts are cut at 800 tokens."""

    def load_examples(self, split: str) -> list[Example]:
        """Leave out the shorter ones."""
        return [example for example in super().load_examples(split) if len(example.source.split()) >= 800]


def strategies(number: int) -> list[SkipStrategy]:
    """Return the first strategies of docs/results.md, FullDepth first."""
    listed: list[dict[str, Any]] = []
    for file in config_files(RESULTS):
        settings = yaml.safe_load(file.read_text(encoding="utf-8"))
        listed = settings.get("strategies", listed) + settings.get("strategies+", [])
    return [getattr(hsdlab, each["class_path"])(**each.get("init_args", {})) for each in listed[:number]]


def quiet_trainer(*callbacks: Callback) -> Trainer:
    """Make a Trainer that prints and logs nothing."""
    options: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return Trainer(accelerator="cpu", callbacks=list(callbacks), enable_model_summary=False, **options)


def seconds(run: Callable[[Path], object]) -> float:
    """Return what a run takes that fills a new folder."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        start = time.perf_counter()
        run(Path(folder))
        return time.perf_counter() - start


def time_compare(dtype: str, examples: int, rounds: int) -> None:
    """Print `compare` over the sum of single runs: 800 tokens of an article, 60 new tokens, batches of 8, metrics."""
    model, tokenizer = load_model("embedded:smollm2-135m", device="cpu", dtype=dtype)
    module = DecodeModule(model, tokenizer, max_new_tokens=60, num_beams=1)
    data = LongArticles("data/cnn_dailymail", prompt="{source}\n\nHighlights:", max_prompt_tokens=800, limit=examples)
    listed = strategies(8)

    def together() -> float:
        return seconds(lambda folder: compare(quiet_trainer(), module, data, listed, folder))

    def one_by_one() -> float:
        return sum(
            seconds(lambda folder, each=each: test(quiet_trainer(), module, data, each, folder)) for each in listed
        )

    sides: list[Callable[[], float]] = [together, one_by_one]
    taken: list[list[float]] = [[], []]
    for turn in range(rounds):
        for side in (0, 1) if turn % 2 else (1, 0):
            taken[side].append(sides[side]())
        print(f"round {turn + 1}: compare {taken[0][-1]:.1f} s, single runs {taken[1][-1]:.1f} s", flush=True)
    _print_ratio(f"compare / {len(listed)} single runs, {examples} examples, {dtype}", *taken)


class PlainBatches(Callback):
    """Decodes with transformers alone, a batch in the order of the data after each batch of the run.

    Attributes:
        ours_s: Seconds of each batch of the run.
        plain_s: Seconds of each batch of transformers.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[list[str]]) -> None:
        self.model, self.tokenizer, self.prompts = model, tokenizer, prompts
        self.ours_s: list[float] = []
        self.plain_s: list[float] = []
        self._began = 0.0

    def on_test_start(self, *_: Any) -> None:
        """Begin the time of the first batch."""
        self._began = time.perf_counter()

    def on_test_batch_end(self, *_: Any) -> None:
        """Decode the next batch. Everything outside of this counts as the run's time."""
        start = time.perf_counter()
        self.ours_s.append(start - self._began)
        batch = self.tokenizer(self.prompts[len(self.plain_s)], return_tensors="pt", padding=True, padding_side="left")
        with torch.inference_mode():
            sequences = type(self.model).generate(
                self.model, **batch, max_new_tokens=50, num_beams=4, do_sample=False, pad_token_id=self._pad_token_id
            )
        self.tokenizer.batch_decode(sequences[:, batch.input_ids.shape[1] :], skip_special_tokens=True)
        self._began = time.perf_counter()
        self.plain_s.append(self._began - start)
        print(
            f"batch {len(self.plain_s)}: test {self.ours_s[-1]:.2f} s, plain {self.plain_s[-1]:.2f} s", file=sys.stderr
        )

    @property
    def _pad_token_id(self) -> Any:
        return self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self.tokenizer.eos_token_id


def time_evaluate(dtype: str, examples: int | None) -> None:
    """Print `test` at full depth over a plain loop: batches of 16, 4 beams, 50 new tokens, no metrics."""
    model, tokenizer = load_model("embedded:smollm2-135m-e2e", device="cpu", dtype=dtype)
    module = DecodeModule(model, tokenizer, max_new_tokens=50, num_beams=4, metrics=[])
    data = JSONLines("data/e2e_nlg", prompt="{source}\n", batch_size=16, limit=examples)
    prompts = [f"{example.source}\n" for example in data.examples("test")]
    batches = [prompts[start : start + 16] for start in range(0, len(prompts), 16)]
    plain = PlainBatches(model, tokenizer, batches)
    whole = seconds(lambda folder: test(quiet_trainer(plain), module, data, FullDepth(), folder))
    groups = [
        [sum(side[start : start + GROUP]) for start in range(0, len(batches), GROUP)]
        for side in (plain.ours_s, plain.plain_s)
    ]
    ours, theirs = whole - sum(plain.plain_s), sum(plain.plain_s)
    _print_ratio(f"test / plain loop, {len(prompts)} examples, {dtype}", *groups)
    print(f"in all: {ours:.1f} s / {theirs:.1f} s = {ours / theirs:.3f}")


def _print_ratio(name: str, ours: list[float], theirs: list[float]) -> None:
    ratio = ratio_spread(ours, theirs)
    print(f"{name}: {ratio.median:.3f} [{ratio.low:.3f}…{ratio.high:.3f}], {torch.get_num_threads()} threads")


def main() -> None:
    """Print one ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", choices=["compare", "evaluate"])
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16"])
    parser.add_argument("--examples", type=int, help="32 for compare, all 630 for evaluate, by default")
    parser.add_argument("--rounds", type=int, default=3, help="of compare")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    if options.run == "compare":
        time_compare(options.dtype, options.examples or 32, options.rounds)
    else:
        time_evaluate(options.dtype, options.examples)


if __name__ == "__main__":
    main()
