"""Put the adapters of finished training runs into adapters/, in bfloat16, with how and on what they were trained.

    python train.py fit --config configs/results/finetune_e2e_plain.yaml        (and its five like)
    python -m benchmarks.publish_adapter

A run that is not there leaves its adapter as it is. The model cards are written anew, from training.json and from the
scores in docs/results.
"""

import json
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from benchmarks.early_exit_data import named
from benchmarks.results_data import ADAPTERS, ROOT, RUNS, read
from hsdlab.exits import Exits
from hsdlab.models.embedded import PREFIX
from hsdlab.records.comparison import Comparison
from hsdlab.records.document import to_plain
from hsdlab.records.labels import METRIC_LABELS
from hsdlab.records.provenance import RunInfo
from hsdlab.records.run_folder import RUN_FILE
from hsdlab.reporting.markdown import markdown_table

NAMES = ("e2e", "e2e-skip-aware", "e2e-exits", "common-gen", "common-gen-skip-aware", "common-gen-exits")
LARGEST_MB = 10
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
LONGER_SETS = "In addition, as many longer sets, which benchmarks/longer_concept_sets.py makes from them."
SHA256 = {
    "e2e": "f4524089f5b3cb2a6ef094c4d788399fb24856914338c1c4921de0818af59a2f",
    "common-gen": "dbcd1af26ab909c1601f3da0bfde83362a59ae55609cfad0935ad7fccacd22f9",
}
"""Of the train.jsonl with these sets, taken on 2026-11-26; a training records no hash of its data."""
LOSSES = {
    "val/loss": "at full depth",
    "val/skip_loss": "under the strategies it draws",
    "val/supervised_loss": "over the exits and the last layer, weighted",
}
"""The validation losses that a model card states, and what each one is."""
SCORES = ("rougeL", "bleu4", "bertscore_f1")


@dataclass(frozen=True)
class Training:
    """A way to train that made adapters.

    Attributes:
        run: What the folder of a run is called after the data set, such as "skip_aware".
        suffix: Of an adapter's name, such as "-skip-aware".
        sentence: How it was trained, for the model card; {plain} is the plainly trained model.
        page: The page with all its scores.
        settings: The strategies whose scores the model card repeats; none: all of them.
    """

    run: str
    suffix: str
    sentence: str
    page: str = "docs/results.md"
    settings: tuple[str, ...] = ("FullDepth()", "SkipDecode(10, 20)", "HSD(2, 0, 8)")


TRAININGS = (
    Training("plain", "", "It was trained at full depth on the references."),
    Training(
        "skip_aware",
        "-skip-aware",
        "It was trained to skip: each training example drew its own strategy. The training targets are the texts that "
        "{plain} writes for the training sources.",
    ),
    Training(
        "exits",
        "-exits",
        "It was trained for early exit: {plain}-skip-aware was trained further, so that some of its layers predict the "
        "next token. The training targets are texts that a model wrote (docs/early_exit.md), not the references.",
        page="docs/early_exit.md",
        settings=(),
    ),
)


def training_of(name: str) -> tuple[str, Training]:
    """Return the data set and the way of training that an adapter's name says."""
    made = next(each for each in reversed(TRAININGS) if name.endswith(each.suffix))
    return name.removesuffix(made.suffix), made


def folder_of(name: str) -> Path:
    """Return the folder of an adapter in the companion distribution."""
    return ADAPTERS / name.replace("-", "_")


def publish(run: Path, folder: Path) -> None:
    """Write an adapter, and how it was trained, into its folder.

    Args:
        run: Folder of a finished `train.py fit`.
        folder: Of the adapter; replaced.

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
    if (exits := Exits.load(run / "model")) is not None:
        exits.to(torch.bfloat16).save(folder)
    info = RunInfo.read(run / RUN_FILE)
    training = to_plain(info) | {"losses": losses(run)}
    (folder / "training.json").write_text(json.dumps(training, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def losses(run: Path) -> dict[str, list[tuple[int, float]]]:
    """Return the validation losses that a run logged, name to (optimizer steps, nats)."""
    curves: dict[str, dict[int, float]] = {}
    for file in sorted(run.rglob("events.out.tfevents.*")):
        events = EventAccumulator(str(file)).Reload()
        for name in LOSSES:
            if name in events.Tags()["scalars"]:
                points = {event.step + 1: round(event.value, 4) for event in events.Scalars(name)}
                curves[name] = curves.get(name, {}) | points  # a resumed run may validate a second time
    return {name: sorted(points.items()) for name, points in curves.items()}


def card(name: str, folder: Path) -> str:
    """Return an adapter's model card.

    Args:
        name: One of `NAMES`.
        folder: Holds the adapter and its training.json.
    """
    training = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    rank = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))["r"]
    megabytes = (folder / "adapter_model.safetensors").stat().st_size / 1e6
    data, made = training_of(name)
    sentence = made.sentence.format(plain=f"{PREFIX}smollm2-135m-{data}")
    longer = "common_gen_longer" in json.dumps(training["config"])
    statement = f"{DATA[data]} {LONGER_SETS}" if longer else DATA[data]
    git = training["git"]
    tree = "with uncommitted changes" if git["dirty"] else "a clean tree"
    lines = [
        "---",
        "base_model: HuggingFaceTB/SmolLM2-135M-Instruct",
        "library_name: peft",
        "---",
        "",
        f"# {PREFIX}smollm2-135m-{name}",
        "",
        f"A LoRA adapter of rank {rank}, {megabytes:.1f} MB in bfloat16. {sentence}",
        "",
        f'- Load: `load_model("{PREFIX}smollm2-135m-{name}")`',
        "- Base model: SmolLM2-135M-Instruct (Hugging Face TB, arXiv 2502.02737), Apache-2.0, in the form that "
        f"{PREFIX}smollm2-135m has: quantised to 4 bits (Q4_1) and converted to float32.",
        f"- Data: {statement} SHA-256 of its train.jsonl, computed on 2026-11-26 "
        f"(the training recorded none): `{SHA256[data]}`.",
        f"- Command: `python {shlex.join(training['command'])}`",
        f"- Commit: `{git['commit']}`, {tree}. Date: {training['date_utc'][:10]}. Seed: {training['seed']}. "
        "Every setting, the versions and the machine: training.json.",
        f"- Validation loss, nats per token: {_last_losses(training['losses'])}.",
        "",
        "## Scores",
        "",
        *_scores(data.replace("-", "_"), made),
    ]
    return "\n".join(lines) + "\n"


def _last_losses(losses: dict[str, list[tuple[int, float]]]) -> str:
    return ", ".join(f"{points[-1][1]:.3f} {LOSSES[name]}" for name, points in losses.items())


def _scores(data: str, made: Training) -> list[str]:
    """Return the lines on an adapter's scores: a table, or that nothing was measured yet."""
    comparison = read(f"{data}_{made.run}_greedy", Comparison)
    if comparison is None:
        return ["Not measured yet."]
    rows = {named(row.name): row for row in comparison.rows}
    found = {name: rows[name] for name in made.settings or rows}
    header = ["Strategy", "Layers per decode step, of 30", *(METRIC_LABELS[metric] for metric in SCORES)]
    cells = [
        [f"`{name}`", f"{row.figures['average_layers']:.1f}", *(f"{row.quality[each].value:.3f}" for each in SCORES)]
        for name, row in found.items()
    ]
    examples = next(iter(found.values())).examples
    precision = comparison.run.config["model"]["dtype"]
    return [
        f"Greedy decoding of the whole test set, {examples} examples, in {precision}. {made.page} has all settings.",
        "",
        markdown_table(header, cells),
    ]


def main() -> None:
    """Publish what is there, and write the model cards."""
    for name in NAMES:
        data, made = training_of(name)
        run, folder = RUNS / f"{data.replace('-', '_')}_{made.run}", folder_of(name)
        if (run / "model/adapter_model.safetensors").is_file():
            publish(run, folder)
            print(f"{folder.relative_to(ROOT)}: from {run.relative_to(ROOT)}")
        else:
            print(f"{folder.relative_to(ROOT)}: left as it is, no finished run in {run.relative_to(ROOT)}")
        if folder.is_dir():
            (folder / "README.md").write_text(card(name, folder), encoding="utf-8")


if __name__ == "__main__":
    main()
