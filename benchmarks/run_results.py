"""Decode and time what the pages of results need and docs/results does not hold yet: `make results`, hours in all.

The pages are docs/results.md and docs/early_exit.md.

    python -m benchmarks.run_results                     everything
    python -m benchmarks.run_results --plan              what is missing, and how long it takes
    python -m benchmarks.run_results e2e_plain_greedy    one of them, or several; e2e_bench: times, e2e_tune: the tuner
    python -m benchmarks.run_results e2e_exits_greedy    the model trained for exits; e2e_exits_bench: its times

A row that docs/results holds for the same weights, examples and options is not decoded again: a run that was stopped
goes on with the row at which it was. A tuning is made anew for new weights, a bench when a strategy has no time yet.
The strategies with exits read a classifier, a router and the tokens of the task. They are made first where runs/results
lacks them.
"""

import argparse
import math
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import yaml

import hsdlab
from benchmarks import early_exit_data, results_data
from benchmarks.results import MODELS
from benchmarks.results_data import ROOT, SETS, collect, read, short, times
from hsdlab import load_model
from hsdlab.cli.configs import config_files
from hsdlab.models import weights_fingerprint
from hsdlab.progress import duration
from hsdlab.records.bench import BenchResult
from hsdlab.records.comparison import Comparison, ComparisonRow
from hsdlab.records.provenance import RunInfo
from hsdlab.records.tuning import TuningResult

TOKENS = {"e2e": 50, "common_gen": 30}


class Decode(NamedTuple):
    """One file of docs/results: a model decoded under a list of strategies."""

    data: str
    model: str
    mode: str

    @property
    def name(self) -> str:
        """Name of the file."""
        return f"{self.data}_{self.model}_{self.mode}"

    @property
    def weights(self) -> str:
        """Name of the fine-tuned model."""
        suffix = "" if self.model == "plain" else f"-{self.model.replace('_', '-')}"
        return f"embedded:smollm2-135m-{self.data.replace('_', '-')}{suffix}"

    @property
    def configs(self) -> list[str]:
        """The layers of its configuration."""
        first = f"configs/results/evaluate_{self.data}{'_exits' if self.model == 'exits' else ''}.yaml"
        return [first, "configs/results/beam4.yaml"] if self.mode == "beam4" else [first]

    def strategies(self) -> list[dict[str, Any]]:
        """Return the strategies that its configuration lists."""
        return listed_in(*self.configs)

    def missing(self) -> list[dict[str, Any]]:
        """Return those that docs/results does not hold for the present weights."""
        committed = read(self.name, Comparison)
        if committed is None or not _of_present_weights(committed.run, self.weights):
            return self.strategies()
        done = {row.name for row in committed.rows}
        return [each for each in self.strategies() if _name(each) not in done]

    def command(self, strategies: list[dict[str, Any]]) -> list[str]:
        """Return the command that decodes strategies."""
        options = ["--data.limit", "200", "--data.batch_size", "16"] if self.mode == "beam4" else []
        return [
            *("evaluate.py", "compare"),
            *(part for config in self.configs for part in ("--config", config)),
            *("--model.name", self.weights),
            *options,
            *("--strategies", yaml.safe_dump(strategies, default_flow_style=True, width=10**6).strip()),
            *("--output", f"runs/results/{self.name}", "--overwrite"),  # what was there has been taken over
        ]


def listed_in(*configs: str) -> list[dict[str, Any]]:
    """Return the strategies that layers of a configuration list."""
    listed: list[dict[str, Any]] = []
    for file in (file for config in configs for file in config_files(ROOT / config)):
        settings = yaml.safe_load(file.read_text(encoding="utf-8"))
        listed = settings.get("strategies", listed) + settings.get("strategies+", [])
    return listed


DECODES = [Decode(data, model, mode) for mode in ("greedy", "beam4") for data in SETS for model in MODELS]
DECODES += [Decode(data, "exits", "greedy") for data in SETS]
BENCHES = [f"{data}_bench" for data in SETS]
EXIT_BENCHES = [f"{data}_exits_bench" for data in SETS]
TUNINGS = [f"{data}_tune" for data in SETS]
EXIT_PARTS = {
    "exit_classifier": ("train.py", "fit_exit_classifier", "exit_classifier.safetensors"),
    "exit_router": ("train.py", "fit_exit_router", "exit_router.safetensors"),
    "token_counts": ("evaluate.py", "count_tokens", "token_counts.jsonl"),
}
"""What strategies with exits read: the program and the subcommand that make it, and the file."""


def _name(strategy: dict[str, Any]) -> str:
    return repr(_strategy(strategy))


def _strategy(value: Any) -> Any:
    """Build what a config says, also a strategy within a strategy."""
    if not isinstance(value, dict) or "class_path" not in value:
        return value
    arguments = {name: _strategy(argument) for name, argument in value.get("init_args", {}).items()}
    return getattr(hsdlab, value["class_path"])(**arguments)


def _of_present_weights(run: RunInfo, name: str) -> bool:
    model, _ = load_model(name, dtype="bfloat16")
    return run.weights == weights_fingerprint(model)


def is_made(name: str) -> bool:
    """Say whether docs/results holds a tuning of the present weights, or a bench of every strategy."""
    if name in EXIT_BENCHES:
        timed = early_exit_data.times(name.removesuffix("_exits_bench"))
        needed = {early_exit_data.named(_name(each)) for each in listed_in(f"configs/results/{_bench_config(name)}")}
        return bool(timed) and all(needed <= sides.keys() for sides in timed.values())
    skip_aware = Decode(name.rpartition("_")[0], "skip_aware", "greedy")
    if name in TUNINGS:
        committed = read(name, TuningResult)
        return committed is not None and _of_present_weights(committed.run, skip_aware.weights)
    return {short(_name(each)) for each in skip_aware.strategies()} <= times(skip_aware.data).keys()


def bench_command(name: str) -> list[str]:
    """Return the command that times a set's strategies."""
    if name in EXIT_BENCHES:
        return ["evaluate.py", "bench", "--config", f"configs/results/{_bench_config(name)}"]
    data = name.removesuffix("_bench")
    return [
        *("evaluate.py", "bench", "--config", f"configs/results/evaluate_{data}.yaml", "--model.dtype", "float32"),
        *("--new_tokens", str(TOKENS[data]), "--prompts", "2", "--repeats", "3", "--output", f"runs/results/{name}"),
    ]


def _bench_config(name: str) -> str:
    """Return the file of the bench of a set's model trained for exits."""
    return f"bench_{name.removesuffix('_bench')}.yaml"


def part_commands(data: str) -> dict[str, list[str]]:
    """Return the commands that make what the exits of a set read and runs/results lacks, by what they make."""
    return {
        f"{data}_{part}": [program, subcommand, "--config", f"configs/results/{part}_{data}.yaml", "--overwrite"]
        for part, (program, subcommand, file) in EXIT_PARTS.items()
        if not (results_data.RUNS / f"{data}_{part}" / file).is_file()
    }


def tune_command(name: str) -> list[str]:
    """Return the command that searches a set's settings."""
    return ["evaluate.py", "tune", "--config", f"configs/results/tune_{name.removesuffix('_tune')}.yaml"]


def expected_s(name: str, strategies: Sequence[dict[str, Any]] = ()) -> float | None:
    """Return how long something takes, from what docs/results says that it took, on the machine that made it.

    Args:
        name: Of a decode, a tuning or a bench.
        strategies: Of a decode, those that are missing; one that was never decoded takes as long as the others on
            average.

    Returns:
        Seconds; None where nothing of the kind was measured.
    """
    if name in BENCHES + EXIT_BENCHES:
        timed = read(name, BenchResult)
        if timed is None:
            return None
        sides = [side for cell in timed.cells for side in cell.sides]
        measured = sum(sum(map(sum, (*side.prompt_s, *side.decode_s))) for side in sides)
        seconds = measured * (timed.repeats + timed.warmup_rounds) / timed.repeats
        return seconds if math.isfinite(seconds) else None
    if name in TUNINGS:
        tuned = read(name, TuningResult)
        rows = () if tuned is None else tuned.comparison.rows
        return sum(_took_s(row) or 0 for row in rows) or None  # the search itself is short
    made = read(name, Comparison)
    rows = () if made is None else made.rows
    took = {row.name: seconds for row in rows if (seconds := _took_s(row)) is not None}
    if not took:
        return None
    return sum(took.get(_name(each), sum(took.values()) / len(took)) for each in strategies)


def _took_s(row: ComparisonRow) -> float | None:
    """Return how long a row took to decode: as it was measured, or by its tokens and their rate."""
    if row.cost is not None and row.cost.wall_s:
        return row.cost.wall_s
    rate = row.figure("tokens_per_second")
    seconds = row.examples * row.output_tokens.value / rate if rate > 0 else math.nan
    return seconds if math.isfinite(seconds) else None


def _about(seconds: float | None) -> str:
    return "unknown" if seconds is None else f"about {duration(seconds)}"


def plan(missing: Mapping[str, float | None]) -> str:
    """Say what is to be made, and how long it takes.

    Args:
        missing: Names and seconds.
    """
    if not missing:
        return "Nothing is missing in docs/results."
    lines = [f"  {name}: {_about(seconds)}" for name, seconds in missing.items()]
    known = [seconds for seconds in missing.values() if seconds is not None]
    more = " and what is unknown" if len(known) < len(missing) else ""
    total = f"In all about {duration(sum(known))}{more}, as long as on the machine that docs/results was made on."
    goes_on = "A run that is stopped goes on with the same command, with the strategy at which it was."
    return "\n".join(["Missing in docs/results:", *lines, total, goes_on])


def main() -> None:
    """Run what is missing."""
    names = [each.name for each in DECODES] + TUNINGS + BENCHES + EXIT_BENCHES
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("only", nargs="*", metavar="NAME", help=f"Which of {', '.join(names)}; all by default.")
    parser.add_argument("--plan", action="store_true", help="Say what is missing and how long it takes, and end.")
    parsed = parser.parse_args()
    only = parsed.only or names
    if unknown := [name for name in only if name not in names]:
        parser.error(f"no {', '.join(unknown)}: expected some of {', '.join(names)}")
    collect()  # what a run that was stopped had finished
    missing: dict[str, float | None] = {}
    commands: dict[str, list[str]] = {}
    for decode in DECODES:
        if decode.name in only and (strategies := decode.missing()):
            missing[decode.name] = expected_s(decode.name, strategies)
            commands[decode.name] = decode.command(strategies)
    for wholes, command in ((TUNINGS, tune_command), (BENCHES + EXIT_BENCHES, bench_command)):
        for name in wholes:
            if name in only and not is_made(name):
                missing[name] = expected_s(name)
                commands[name] = [*command(name), "--overwrite"]
    parts = {
        part: command
        for data in SETS
        if any(name.startswith(f"{data}_exits") for name in commands)
        for part, command in part_commands(data).items()
    }
    print(plan(dict.fromkeys(parts) | missing), flush=True)
    if parsed.plan:
        return
    for name, command_line in (parts | commands).items():
        _run(name, command_line)


def _run(name: str, command: list[str]) -> None:
    print(f"== {name}", flush=True)
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True)
    collect()


if __name__ == "__main__":
    main()
