"""Several subcommands in one launch of two processes: `python -m tests.two_processes FOLDER NAMES OPTION...`.

Lightning starts this script a second time for the second process; starting it once per subcommand would take minutes.
"""

import sys
from pathlib import Path

from hsdlab.cli import main
from hsdlab.cli.train import main as train
from hsdlab.reporting import figures
from tests.blank_pictures import BlankCanvas

HSD = ("--skip=HSD", "--skip.max_exit=2")
STRATEGIES = "--strategies=[{class_path: HSD, init_args: {max_exit: 2}}]"
RUNS = {  # folder: subcommand and options
    "test": ("test", *HSD),
    "sampled": ("test", "--model.num_beams=1", "--model.generate_kwargs={do_sample: true, temperature: 3.0}"),
    "validate": ("validate", *HSD),
    "predict": ("predict", *HSD),
    "compare": ("compare", STRATEGIES),
    "calibrate": ("calibrate", STRATEGIES, "--tolerance=0.6", "--loss=textual"),
    "tune": ("tune", "--max-loss=0.9", "--metric=rouge1", "--trials=10", "--decodes=2"),
    "one_example": ("test", *HSD, "--data.limit=1"),
}


SKIP_AWARE = (
    "--model.skip_strategies=[{class_path: SkipDecode, init_args: {min_exit: 1, max_exit: 1}}, "
    "{class_path: HSD, init_args: {max_exit: 1}}]"
)
LAYERSKIP = (
    "--model.deep_supervision.weights=layerskip",
    "--model.deep_supervision.rotation=2",
    "--model.layer_dropout.rate=0.8",
    "--model.layer_dropout.profile=uniform",
)
FITS = {  # a layer that the drawn strategy skips in the whole text must not be without gradient in any process
    "fit_whole": (SKIP_AWARE, "--data.limit=1", "--model.generate_every=1"),  # one process validates nothing
    "fit_lora": (SKIP_AWARE, "--model.lora.r=4", "--model.skip_draws=example", "--model.distillation=0.5"),
    "fit_layerskip": LAYERSKIP,  # most batches leave a layer out that the other process's batch uses, or both do
    "fit_layerskip_lora": (*LAYERSKIP, "--model.lora.r=4"),
}


OFTEN = ["test", "compare", "fit_lora"]
"""What `make test` runs."""

SELDOM = [name for name in (*RUNS, *FITS) if name not in OFTEN]


def run_all(folder: Path, names: list[str], options: list[str]) -> None:
    """Run some of ``RUNS`` and ``FITS``, each into a folder of its own."""
    of_training = [option for option in options if not option.startswith(("--model.num_beams", "--model.metrics"))]
    for name in names:
        output = f"--output={folder / name}"
        if name in RUNS:
            main([RUNS[name][0], *options, *RUNS[name][1:], output])
        else:
            train(["fit", *of_training, *FITS[name], "--trainer.max_epochs=2", output])


if __name__ == "__main__":
    folder, names, *given = sys.argv[1:]
    figures.FigureCanvasAgg = BlankCanvas
    run_all(Path(folder), names.split(","), [*given, "--trainer.devices=2", "--trainer.strategy=ddp"])
