"""Print what cheap confidence checks get wrong and what they cost, against checks with the whole head (docs/calm.md).

    python -m benchmarks.check_error                                     # the plain E2E model, 24 validation inputs
    python -m benchmarks.check_error --vocabulary 2000 runs/e2e_tokens/token_counts.jsonl
    python -m benchmarks.check_error --model runs/exits/model --data data/common_gen --threshold 0.7

The model decodes at full depth, greedily, one input at a time, at most 50 new tokens, in float32. At the checked layers
of each step every kind of check reads the same hidden state, in turns, and its time is taken there. So the errors are
those of a check, without what an earlier exit would change in later steps. The time of a layer is that between two
layers of the same step. All times include the strategy's own work. Needs the prepared data.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean, median

import torch
from torch import Tensor

from hsdlab import CALM, ConfidenceStrategy, generate, load_model
from hsdlab.data import JSONLines
from hsdlab.decoding import LayerState
from hsdlab.decoding.families import DecoderParts, decoder_parts
from hsdlab.decoding.states import Probe, StepMemory
from hsdlab.progress import Steps
from hsdlab.reporting.markdown import markdown_table
from hsdlab.strategies.confidence import softmax_response
from hsdlab.strategies.probing import nobody

NEW_TOKENS = 50


@dataclass(frozen=True)
class Check:
    """What one check said.

    Attributes:
        layer: After which layer.
        confidence: Its softmax response.
        token: Its most likely token.
        seconds: The time it took.
    """

    layer: int
    confidence: float
    token: int
    seconds: float


class Watcher(ConfidenceStrategy):
    """Runs all layers, and makes every kind of check after some of them.

    Args:
        kinds: The strategies whose checks are made; each has the same ``probe_layers``, a list.

    Attributes:
        steps: Of each decode step, the checks of each kind, in the order of ``kinds``.
        layer_s: Of each decode step, the median time of a layer.
    """

    def __init__(self, kinds: Sequence[CALM]) -> None:
        self.kinds = kinds
        self.steps: list[list[list[Check]]] = []
        self.layer_s: list[float] = []
        self._gaps: list[float] = []
        self._left = 0.0

    def check_model(self, parts: DecoderParts) -> None:
        """Refuse what one of the kinds refuses."""
        for kind in self.kinds:
            kind.check_model(parts)

    def should_exit(self, state: LayerState) -> Tensor:
        """Make the checks; nobody exits."""
        arrived = time.perf_counter()
        if state.layer == 0:
            self.steps.append([[] for _ in self.kinds])
            self._gaps = []
            self._memories = [StepMemory(1) for _ in self.kinds]
        else:
            self._gaps.append(arrived - self._left)
        if self.kinds[0].probes(state):
            turn = len(self.steps) + state.layer
            for place in range(len(self.kinds)):
                kind = (place + turn) % len(self.kinds)
                self.steps[-1][kind].append(self._checked(kind, state))
        if state.layer == state.num_layers - 2:
            self.layer_s.append(median(self._gaps))
        self._left = time.perf_counter()
        return nobody(state)

    def _checked(self, kind: int, state: LayerState) -> Check:
        probe = Probe(state.probe.parts, state.output, layer=state.layer, heads=state.probe.heads)
        own = replace(state, probe=probe, memory=self._memories[kind])
        start = time.perf_counter()
        logits, tokens = self.kinds[kind].probed_logits(own)
        confidence = float(softmax_response(logits)[0])
        seconds = time.perf_counter() - start
        likeliest = int(logits[0].argmax())
        return Check(state.layer, confidence, likeliest if tokens is None else int(tokens[0, likeliest]), seconds)


@dataclass(frozen=True)
class CheckError:
    """A line of the table.

    Attributes:
        check: The options of the checks.
        checks: How many are compared: with a shortlist, those after the first of a step.
        argmax_differs: Share of them whose most likely token is not that of the whole head.
        confidence_error: Mean absolute difference of the softmax response.
        exits_changed: Share of the tokens that exit at another layer.
        tokens_changed: Share of these whose token is another one.
        average_exit: Mean number of layers up to the exit.
        layers: Time of a check, in layers; the median over the steps.
        heads: Time of a check, in checks with the whole head, likewise.
        quartiles: Of ``heads``.
    """

    check: str
    checks: int
    argmax_differs: float
    confidence_error: float
    exits_changed: float
    tokens_changed: float
    average_exit: float
    layers: float
    heads: float
    quartiles: tuple[float, float]


def errors(watcher: Watcher, final: list[int], threshold: float, num_layers: int, warmup: int) -> Iterator[CheckError]:
    """Compare each kind of check with the first one, which applies the whole head.

    Args:
        watcher: After all decodes.
        final: The token of full depth in each step.
        threshold: From which confidence a token exits.
        num_layers: L.
        warmup: How many of the first steps do not count for the times.

    Yields:
        A line for each kind.
    """
    for kind, strategy in enumerate(watcher.kinds):
        first = 0 if strategy.shortlist is None else 1
        pairs = [(step[0][first:], step[kind][first:]) for step in watcher.steps]
        both = [pair for whole, cheap in pairs for pair in zip(whole, cheap, strict=True)]
        exits = [[_exit(step[each], threshold, num_layers) for each in (0, kind)] for step in watcher.steps]
        changed = []  # whether the token is another one, for each exit at another layer
        for step, token, (whole_exit, cheap_exit) in zip(watcher.steps, final, exits, strict=True):
            tokens = {check.layer: check.token for check in step[0]} | {num_layers - 1: token}
            if whole_exit != cheap_exit:
                changed.append(tokens[whole_exit] != tokens[cheap_exit])
        seconds = [[median(check.seconds for check in checks) for checks in pair] for pair in pairs[warmup:]]
        in_heads = torch.tensor([cheap / whole for whole, cheap in seconds])
        low, middle, high = in_heads.quantile(torch.tensor([0.25, 0.5, 0.75])).tolist()
        options = {"shortlist": strategy.shortlist, "check_vocabulary": strategy.check_vocabulary}
        given = [f"{name}={value!r}" for name, value in options.items() if value is not None]
        yield CheckError(
            check=", ".join(given) or "whole head",
            checks=len(both),
            argmax_differs=fmean(whole.token != cheap.token for whole, cheap in both),
            confidence_error=fmean(abs(whole.confidence - cheap.confidence) for whole, cheap in both),
            exits_changed=len(changed) / len(exits),
            tokens_changed=fmean(changed) if changed else 0.0,
            average_exit=fmean(cheap_exit + 1 for _, cheap_exit in exits),
            layers=median(cheap / layer for (_, cheap), layer in zip(seconds, watcher.layer_s[warmup:], strict=True)),
            heads=middle,
            quartiles=(low, high),
        )


def _exit(checks: list[Check], threshold: float, num_layers: int) -> int:
    """Return the layer after which a token exits."""
    return next((check.layer for check in checks if check.confidence >= threshold), num_layers - 1)


def _vocabulary(text: str) -> int | str:
    return int(text) if text.isdigit() else text


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded:smollm2-135m-e2e")
    parser.add_argument("--data", default="data/e2e_nlg", help="folder of JSON Lines")
    parser.add_argument("--split", default="validation")
    parser.add_argument("--examples", type=int, default=24)
    parser.add_argument("--layers", type=int, nargs="*", help="default: the model's exits, or every 4th layer")
    parser.add_argument("--threshold", type=float, default=0.9)
    parser.add_argument("--shortlist", type=int, nargs="*", default=[2, 4, 8, 16, 64])
    parser.add_argument(
        "--vocabulary",
        type=_vocabulary,
        nargs="*",
        default=[2000, 8000],
        help="check_vocabulary: numbers, or files of `hsdlab count-tokens`; each also with the largest shortlist",
    )
    parser.add_argument("--output", type=Path, default=Path("runs/check_error.json"), help="the figures as JSON")
    return parser.parse_args()


def main() -> None:
    """Print the table and write the JSON."""
    options = _options()
    model, tokenizer = load_model(options.model, device="cpu", dtype="float32")
    parts = decoder_parts(model)
    layers = options.layers or list(parts.exits.layers if parts.exits else range(3, parts.num_layers - 1, 4))
    cheap: list[dict[str, int | str | None]] = [{}, *({"shortlist": each} for each in options.shortlist)]
    for vocabulary in options.vocabulary:
        cheap.append({"check_vocabulary": vocabulary})
        cheap += [{"check_vocabulary": vocabulary, "shortlist": max(options.shortlist)}] if options.shortlist else []
    watcher = Watcher([CALM(options.threshold, probe_layers=layers, **each) for each in cheap])  # type: ignore[arg-type]
    examples = JSONLines(options.data, prompt="{source}\n", limit=options.examples).examples(options.split)
    final: list[int] = []
    warmup = 0
    with Steps("Decoding", len(examples), "examples", stream=sys.stderr, background=False) as steps:
        for example in examples:
            inputs = tokenizer(f"{example.source}\n", return_tensors="pt")
            with torch.inference_mode():
                output = generate(model, strategy=watcher, max_new_tokens=NEW_TOKENS, do_sample=False, **inputs)
            final += output.sequences[0, inputs["input_ids"].shape[1] + 1 :].tolist()
            warmup = warmup or len(final)
            steps.advance()
    lines = list(errors(watcher, final, options.threshold, parts.num_layers, warmup))
    content = {
        "model": options.model,
        "data": f"{options.data}, {options.split}",
        "examples": len(examples),
        "tokens": len(final),
        "layers": layers,
        "threshold": options.threshold,
        "threads": torch.get_num_threads(),
        "layer_ms": 1e3 * median(watcher.layer_s[warmup:]),
        "checks": [asdict(line) for line in lines],
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    print(f"{options.model}, {len(examples)} inputs of {options.data} ({options.split}), {len(final)} tokens,")
    print(f"checks after the layers {layers}, threshold {options.threshold}, {content['threads']} threads;")
    print(f"a layer takes {content['layer_ms']:.2f} ms, with the strategy's work\n")
    header = ["Checks", "Another argmax", "Error of the confidence", "Other exits", "of these, another token"]
    header += ["Average exit", "Time in layers", "Time in whole-head checks"]
    cells = [
        [
            f"`{line.check}`" if "=" in line.check else line.check,
            f"{line.argmax_differs:.2%}",
            f"{line.confidence_error:.4f}",
            f"{line.exits_changed:.2%}",
            f"{line.tokens_changed:.1%}",
            f"{line.average_exit:.2f}",
            f"{line.layers:.2f}",
            f"{line.heads:.3f} [{line.quartiles[0]:.3f}…{line.quartiles[1]:.3f}]",
        ]
        for line in lines
    ]
    print(markdown_table(header, cells))


if __name__ == "__main__":
    main()
