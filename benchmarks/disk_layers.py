"""Time of a decode step with all layers on the disk, at full depth and under a schedule: docs/own_model.md.

`OMP_NUM_THREADS=1 python -m benchmarks.disk_layers`
"""

import tempfile
from statistics import median

import torch

from hsdlab import HSD, FullDepth, generate, load_model

ROUNDS, NEW_TOKENS = 5, 6
LAYERS = 30
OUTSIDE = ("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head")


def main() -> None:
    """Decode in alternation and print the medians."""
    places = dict.fromkeys(OUTSIDE, "cpu") | {f"model.layers.{index}": "disk" for index in range(LAYERS)}
    with tempfile.TemporaryDirectory() as folder:
        model, tokenizer = load_model("embedded:smollm2-135m", device_map=places, offload_folder=folder)
        prompt = tokenizer("The quick brown fox", return_tensors="pt")
        times: dict[str, list[float]] = {}
        for _ in range(ROUNDS + 1):
            for strategy in (FullDepth(), HSD(3, 0, 4)):
                out = generate(model, **prompt, strategy=strategy, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS)
                step = 1000 * out.timing.decode_s / out.timing.decode_passes
                times.setdefault(f"{strategy!r}, {out.trace.average_layers:.1f} layers", []).append(step)
    full, skipping = times.values()
    for name, (_, *steps) in times.items():  # the first round is warm-up
        print(f"{name}: {median(steps):.0f} ms per decode step [{min(steps):.0f}, {max(steps):.0f}]")
    shares = [skipped / whole for skipped, whole in zip(skipping[1:], full[1:], strict=True)]
    print(f"share of the time: {median(shares):.2f} [{min(shares):.2f}, {max(shares):.2f}]; torch {torch.__version__}")


if __name__ == "__main__":
    main()
