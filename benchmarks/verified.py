"""Print what verified drafts save, for docs/strategies/verified.md. Needs the prepared data.

    python -m benchmarks.verified                                  # all models
    python -m benchmarks.verified e2e --batch 8                    # one model, one batch size
    python -m benchmarks.verified e2e --texts                      # all test inputs: how many texts are not FullDepth's
    python -m benchmarks.verified e2e --split validation --lengths 2 4 6 --vocabulary FILE

The last one compares lengths and a smaller head for drafts on the split on which they are chosen. float32, at most 50
new tokens. The sides decode each batch in turns; each ratio is within a batch, and all seconds of `generate` count, the
prefill too. A text that differs does so at a tie if full depth's two largest logits there are within 1e-4 of the
largest.
"""

import argparse
import ast
import logging
import sys
import time
import warnings
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

import hsdlab
from hsdlab import HSD, FullDepth, SkipStrategy, Verified, load_model
from hsdlab.data import JSONLines
from hsdlab.decoding import DecodeOutput
from hsdlab.progress import Steps
from hsdlab.runs.timing import ratio_spread

MODELS: dict[str, tuple[str, Verified]] = {
    "e2e": ("data/e2e_nlg", Verified(HSD(3, 0, 4), num_draft_tokens=4)),
    "common_gen": ("data/common_gen", Verified(HSD(2, 0, 8), num_draft_tokens=2)),
}
"""The data of each embedded model that was trained to skip, and the fastest draft on its validation split."""

TIE = 1e-4
NEW_TOKENS = 50


class Side:
    """One way to decode.

    Args:
        name: In the table.
        strategy: Ours; None for transformers' own ``generate``.
        options: Of ``generate``.
    """

    def __init__(self, name: str, strategy: SkipStrategy | None, **options: Any) -> None:
        self.name, self.strategy, self.options = name, strategy, options
        self.seconds: list[float] = []
        self.outputs: list[DecodeOutput] = []

    def decode(self, model: PreTrainedModel, batch: dict[str, Any]) -> Tensor:
        """Decode a batch, note the time, return the sequences [rows, length]."""
        torch.manual_seed(len(self.seconds))
        start = time.perf_counter()
        with torch.inference_mode():
            if self.strategy is None:
                sequences = type(model).generate(model, **batch, **self.options)
            else:
                with self.strategy.applied_to(model) as run:
                    sequences = model.generate(**batch, **self.options)
        self.seconds.append(time.perf_counter() - start)
        if self.strategy is not None and run.output is not None:
            self.outputs.append(run.output)
        return sequences


def measure(name: str, batch_size: int, options: argparse.Namespace) -> None:
    """Print a table: seconds, speed-up over plain ``generate`` and over FullDepth, what became of the drafts."""
    folder, verified = MODELS[name]
    model, batches = _loaded(name, folder, batch_size, options.examples, options.split)
    call: dict[str, Any] = {"do_sample": True, "temperature": 0.7} if options.sampling else {"do_sample": False}
    call |= {"max_new_tokens": NEW_TOKENS, "pad_token_id": model.generation_config.eos_token_id}
    sides = [Side("plain `generate`", None, **call), Side("`FullDepth()`", FullDepth(), **call)]
    for draft in [verified.draft] if options.draft is None else options.draft:
        for length in options.lengths or [verified.num_draft_tokens]:
            for vocabulary in (None, *options.vocabulary):
                strategy = Verified(draft, length, draft_vocabulary=vocabulary)
                words = f"{draft!r}, {length}" + (f", draft_vocabulary={vocabulary!r}" if vocabulary else "")
                sides.append(Side(f"`Verified({words})`", strategy, **call))
    exits = options.exits if batch_size == 1 else []
    sides += [Side(f"`assistant_early_exit={layer}`", None, assistant_early_exit=layer, **call) for layer in exits]
    for side in sides:
        side.decode(model, batches[0])
        side.seconds.clear()
        side.outputs.clear()
    with Steps("Decoding", len(batches), "batches", stream=sys.stderr, background=False) as steps:
        for turn, batch in enumerate(batches):
            for place in range(len(sides)):
                sides[(place + turn) % len(sides)].decode(model, batch)
            steps.advance()
    kind = "temperature 0.7" if options.sampling else "greedy"
    inputs = f"{options.examples} {options.split} inputs"
    print(f"\n{name}, {inputs}, batch {batch_size}, {kind}, {torch.get_num_threads()} threads\n")
    print("| Decoded by | Seconds | Speed-up over plain | over FullDepth | Accepted | Tokens per verification |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for side in sides:
        ratios = [ratio_spread(other.seconds, side.seconds) for other in sides[:2]]
        cells = [f"{each.median:.2f} [{each.low:.2f}…{each.high:.2f}]" for each in ratios]
        print(f"| {side.name} | {sum(side.seconds):.1f} | {cells[0]} | {cells[1]} | {' | '.join(_drafts(side))} |")


def _drafts(side: Side) -> list[str]:
    sums = [each.trace.drafts.sums() for each in side.outputs if each.trace.drafts is not None]
    if not sums:
        return ["–", "–"]
    drafted, accepted, rounds = (
        sum(each[name] for each in sums) for name in ("draft_tokens", "accepted_drafts", "verifications")
    )
    steps = sum(int(each.trace.live.sum()) for each in side.outputs)
    return [f"{accepted / drafted:.0%}", f"{steps / rounds:.2f}"]


def count_differences(name: str, batch_size: int) -> None:
    """Decode all test inputs greedily; print how many texts differ from FullDepth's, and how many not at a tie."""
    folder, verified = MODELS[name]
    model, batches = _loaded(name, folder, batch_size, None, "test")
    options: dict[str, Any] = {"max_new_tokens": NEW_TOKENS, "do_sample": False}
    options["pad_token_id"] = pad = model.generation_config.eos_token_id
    full, drafted = Side("", FullDepth(), **options), Side("", verified, **options)
    texts = differing = elsewhere = 0
    with Steps("Decoding", len(batches), "batches", stream=sys.stderr, background=False) as steps:
        for batch in batches:
            width = batch["input_ids"].shape[1]
            pairs = [side.decode(model, batch)[:, width:] for side in (full, drafted)]
            longest = max(each.shape[1] for each in pairs)
            ours, theirs = (torch.nn.functional.pad(each, (0, longest - each.shape[1]), value=pad) for each in pairs)
            for row in (ours != theirs).any(dim=1).nonzero().flatten().tolist():
                differing += 1
                place = int((ours[row] != theirs[row]).nonzero()[0])
                elsewhere += not _is_tie(model, batch, row, ours[row, :place])
            texts += len(ours)
            steps.advance()
    print(f"\n{name}: {texts} texts, {differing} differ from FullDepth's, {elsewhere} of them not at a tie")


def _is_tie(model: PreTrainedModel, batch: dict[str, Any], row: int, text: Tensor) -> bool:
    prompt = batch["input_ids"][row][batch["attention_mask"][row].bool()]
    with torch.inference_mode():
        logits = model(torch.cat([prompt, text])[None]).logits[0, -1]
    first, second = logits.topk(2).values
    return bool(first - second < TIE * logits.abs().max())


def _loaded(
    name: str, folder: str, batch_size: int, examples: int | None, split: str
) -> tuple[PreTrainedModel, list[Any]]:
    model, tokenizer = load_model(f"embedded:smollm2-135m-{name.replace('_', '-')}-skip-aware", device="cpu")
    tokenizer.padding_side = "left"
    prompts = [f"{each.source}\n" for each in JSONLines(folder, prompt="{source}\n", limit=examples).examples(split)]
    groups = [prompts[start : start + batch_size] for start in range(0, len(prompts), batch_size)]
    return model, [tokenizer(group, return_tensors="pt", padding=True) for group in groups]


def _strategy(text: str) -> SkipStrategy:
    """Make a strategy of a call such as HSD(2, 0, 8)."""
    name, arguments = text.rstrip(")").split("(")
    made: SkipStrategy = getattr(hsdlab, name)(*ast.literal_eval(f"[{arguments}]"))
    return made


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", choices=[[], *MODELS], help="default: all")
    parser.add_argument("--batch", type=int, nargs="*", default=[1, 8], help="batch sizes")
    parser.add_argument("--examples", type=int, default=48)
    parser.add_argument("--sampling", action="store_true", help="temperature 0.7 instead of greedy decoding")
    parser.add_argument("--exits", type=int, nargs="*", default=[], help="transformers' assistant_early_exit, batch 1")
    parser.add_argument(
        "--vocabulary",
        nargs="*",
        type=lambda word: int(word) if word.isdigit() else word,
        default=[],
        help="draft_vocabulary: numbers, or files of `hsdlab count-tokens`",
    )
    parser.add_argument("--lengths", type=int, nargs="*", default=[], help="num_draft_tokens")
    parser.add_argument("--draft", type=_strategy, nargs="*", help="other drafts, such as 'HSD(2, 0, 8)'")
    parser.add_argument("--split", choices=["test", "validation"], default="test")
    parser.add_argument("--texts", action="store_true", help="count texts that differ, of the whole test split")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    for name in options.models or MODELS:
        if options.texts:
            count_differences(name, batch_size=8)
            continue
        for batch_size in options.batch:
            measure(name, batch_size, options)


if __name__ == "__main__":
    main()
