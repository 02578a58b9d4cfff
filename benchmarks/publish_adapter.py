"""Put the adapters of finished training runs into hsdlab/adapters, in bfloat16, with how and on what they were trained.

    python train.py fit --config configs/results/finetune_e2e_plain.yaml        (and its three like)
    python -m benchmarks.publish_adapter

A run that is not there leaves its adapter as it is.
"""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hsdlab.models.embedded import EMBEDDED_ADAPTERS, PREFIX
from hsdlab.records.document import to_plain
from hsdlab.records.provenance import RunInfo
from hsdlab.records.run_folder import RUN_FILE

ROOT = Path(__file__).parents[1]
RUNS = ROOT / "runs/results"
LARGEST_MB = 12
DATA = {
    "e2e": (
        "E2E NLG Challenge (Novikova, Dušek, Rieser, SIGDIAL 2017), official training set, version 1.0.0, from "
        "github.com/tuetschek/e2e-dataset. Licence: CC BY-SA 4.0."
    ),
    "common-gen": (
        "CommonGen (Lin et al., Findings of EMNLP 2020), 10,000 of the 32,470 training sets of "
        "github.com/INK-USC/CommonGen. Licence: MIT."
    ),
}
"""Data statements: what each data set is, which part of it was trained on, under what licence."""
DATA["common-gen-skip-aware"] = (
    f"{DATA['common-gen']} As many longer sets, made of them (benchmarks/longer_concept_sets.py)."
)


def publish(run: Path, folder: Path) -> None:
    """Write an adapter and its papers into its folder.

    Args:
        run: Folder of a finished `train.py fit`.
        folder: One of `EMBEDDED_ADAPTERS`; replaced.

    Raises:
        ValueError: The adapter is larger than a repository should carry.
    """
    weights = {
        name: weight.to(torch.bfloat16) for name, weight in load_file(run / "model/adapter_model.safetensors").items()
    }
    megabytes = sum(weight.nbytes for weight in weights.values()) / 1e6
    if megabytes > LARGEST_MB:
        raise ValueError(f"{run} has an adapter of {megabytes:.1f} MB; expected at most {LARGEST_MB}: lower lora.r.")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    shutil.copyfile(run / "model/adapter_config.json", folder / "adapter_config.json")
    info = RunInfo.read(run / RUN_FILE)
    training = to_plain(info) | {"losses": losses(run)}
    (folder / "training.json").write_text(json.dumps(training, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(papers(folder.name, info, megabytes), encoding="utf-8")


def losses(run: Path) -> dict[str, list[tuple[int, float]]]:
    """Return the validation losses that a run logged, name to (optimizer steps, nats)."""
    curves: dict[str, dict[int, float]] = {}
    for file in sorted(run.rglob("events.out.tfevents.*")):
        events = EventAccumulator(str(file)).Reload()
        for name in ("val/loss", "val/skip_loss"):
            if name in events.Tags()["scalars"]:
                points = {event.step + 1: round(event.value, 4) for event in events.Scalars(name)}
                curves[name] = curves.get(name, {}) | points  # a resumed run may validate a second time
    return {name: sorted(points.items()) for name, points in curves.items()}


def papers(name: str, run: RunInfo, megabytes: float) -> str:
    """Return the README of an adapter."""
    aware = name.endswith("-skip-aware")
    data = name.removesuffix("-skip-aware")
    config = f"finetune_{data.replace('-', '_')}_{'skip_aware' if aware else 'plain'}.yaml"
    kind = (
        f"each example under a strategy of its own, so that layers may be skipped, on what {PREFIX}smollm2-135m-{data} "
        "writes for the training sources"
        if aware
        else "at full depth on the references"
    )
    commit = "outside git" if run.git is None else run.git.commit[:10]
    changed = " with uncommitted changes" if run.git and run.git.dirty else ""
    lines = [
        f"# {PREFIX}smollm2-135m-{name}",
        "",
        f"A LoRA adapter for SmolLM2-135M-Instruct as it is embedded (embedded:smollm2-135m), {megabytes:.1f} MB in "
        f"bfloat16, trained {kind}. docs/results.md has its figures.",
        "",
        f'- Load: `load_model("{PREFIX}smollm2-135m-{name}")`',
        f"- Training: `python train.py fit --config configs/results/{config}`, {run.date_utc[:10]}, commit "
        f"{commit}{changed}; all of it in training.json",
        f"- Data: {DATA.get(name, DATA[data])}",
        "- Base model: SmolLM2-135M-Instruct (Hugging Face TB, arXiv 2502.02737), Apache-2.0",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Publish what is there."""
    for folder in EMBEDDED_ADAPTERS.values():
        data = folder.name.removesuffix("-skip-aware").replace("-", "_")
        run = RUNS / f"{data}_{'skip_aware' if folder.name.endswith('-skip-aware') else 'plain'}"
        if (run / "model/adapter_model.safetensors").is_file():
            publish(run, folder)
            print(f"{folder.relative_to(ROOT)}: from {run.relative_to(ROOT)}")
        else:
            print(f"{folder.relative_to(ROOT)}: left as it is, no finished run in {run.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
