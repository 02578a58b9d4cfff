"""Print what bounds the gain of verified drafts on this machine: a and v of docs/strategies/verified.md.

    python -m benchmarks.verified_cost                      # SmolLM2-135M, batches of 1, 8 and 32
    python -m benchmarks.verified_cost --batch 1 --draft-vocabulary 2000

The time of a draft step and that of a verification of 2, 3, 5 and 9 tokens, both in decode steps at full depth of the
same batch. The sides decode in turns; each ratio is within a round. float32, prompts of 30 tokens, 24 new tokens.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel

from hsdlab import HSD, FullDepth, SkipStrategy, Verified, generate, load_model
from hsdlab.decoding.cost import draft_cost
from hsdlab.decoding.families import decoder_parts
from hsdlab.decoding.passes import Passes
from hsdlab.reporting.markdown import markdown_table

DRAFT = HSD(3, 0, 4)
LENGTHS = (1, 2, 4, 8)
PROMPT_TOKENS, NEW_TOKENS = 30, 24


@contextmanager
def timed_passes() -> Iterator[dict[str, list[float]]]:
    """Note how long each draft step ("draft") and each verification ("run") takes inside the block, in seconds."""
    seconds: dict[str, list[float]] = {"draft": [], "run": []}
    own: dict[str, Callable[..., Any]] = {name: getattr(Passes, name) for name in seconds}

    def timed(name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            result = own[name](*args, **kwargs)
            seconds[name].append(time.perf_counter() - start)
            return result

        return call

    try:
        for name in seconds:
            setattr(Passes, name, timed(name))
        yield seconds
    finally:
        for name, method in own.items():
            setattr(Passes, name, method)


def measure(model: PreTrainedModel, rows: int, vocabulary: int | None, rounds: int) -> list[str]:
    """Return the cells of a line: the time of a draft step, and of a verification after so many drafts."""
    prompts = torch.randint(100, 20_000, (rows, PROMPT_TOKENS), generator=torch.Generator().manual_seed(0))

    def decode(strategy: SkipStrategy) -> float:
        output = generate(
            model,
            input_ids=prompts,
            attention_mask=torch.ones_like(prompts),
            strategy=strategy,
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            eos_token_id=None,
        )
        return output.timing.decode_s / output.timing.decode_passes

    drafts: list[float] = []
    verifications: dict[int, list[float]] = {length: [] for length in LENGTHS}
    for turn in range(rounds + 1):
        step = decode(FullDepth())
        for length in LENGTHS:
            with timed_passes() as seconds:
                decode(Verified(DRAFT, length, draft_vocabulary=vocabulary))
            if turn > 0:  # the first round warms up
                drafts.append(statistics.median(seconds["draft"]) / step)
                verifications[length].append(statistics.median(seconds["run"]) / step)
    return [
        f"{statistics.median(each):.2f} [{min(each):.2f}…{max(each):.2f}]" for each in (drafts, *verifications.values())
    ]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="*", default=[1, 8, 32], help="batch sizes")
    parser.add_argument("--draft-vocabulary", type=int, nargs="*", default=[2000], help="besides the whole head")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    model, _ = load_model("embedded:smollm2-135m", device="cpu")
    parts = decoder_parts(model)
    lines = []
    for rows in options.batch:
        for vocabulary in (None, *options.draft_vocabulary):
            read = f"{draft_cost(parts, DRAFT, NEW_TOKENS, vocabulary):.2f}"
            lines.append([str(rows), str(vocabulary or "all"), read, *measure(model, rows, vocabulary, options.rounds)])
    header = ["Batch", "Draft vocabulary", "Weights that a draft step reads", "Draft step"]
    print(f"{DRAFT!r}, {torch.get_num_threads()} threads; in decode steps of FullDepth, median [lowest…highest]\n")
    print(markdown_table([*header, *(f"Verification of {length} + 1" for length in LENGTHS)], lines))


if __name__ == "__main__":
    main()
