"""DecodingTrainer: a Trainer that also compares strategies and measures their speed."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse.typing import PositiveInt
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from rich.console import Console
from rich.progress import track
from torch import Tensor

from hsdlab.bench import own_text, run_bench, run_inspection
from hsdlab.data import GenerationDataModule
from hsdlab.data.sample import sample_batches
from hsdlab.decoding.families import context_length, decoder_parts
from hsdlab.metrics import Efficiency
from hsdlab.modules import DecodeModule
from hsdlab.modules.predictions import PredictionFile, batch_costs
from hsdlab.reporting import Comparison, StrategyResult, tensorboard
from hsdlab.strategies import FullDepth, SkipStrategy


class DecodingTrainer(Trainer):
    """A Trainer with more entry points, `compare`, `bench` and `inspect`, that write into `default_root_dir`."""

    limit_test_batches: int | float | None

    def compare(
        self,
        model: DecodeModule,
        datamodule: GenerationDataModule,
        strategies: list[SkipStrategy],
        run: dict[str, Any] | None = None,
    ) -> Comparison:
        """Decode the test split under each strategy; write and print quality against cost.

        The baseline, FullDepth, is run first, and added if it is not listed. The report (comparison.md,
        comparison.json, pareto.png, depth.png, TensorBoard's runs) is written anew after each strategy,
        predictions after each batch: when a run is cut short, by Ctrl-C or an error, what has finished stays and
        its table is printed. If `model.resume` is set, what the prediction files hold is not decoded again.

        Args:
            model: Holds the loaded model.
            datamodule: The data.
            strategies: What to compare: class names, or class_path and init_args.
            run: Provenance for the report.

        Returns:
            The comparison of all strategies.

        Raises:
            ValueError: A strategy is listed twice.
        """
        ordered = baseline_first(strategies)
        folder = Path(self.default_root_dir)
        files = prediction_files(folder, ordered)
        events = folder / tensorboard.FOLDER
        if self.is_global_zero:
            tensorboard.remove_events(events)
        results: list[StrategyResult] = []
        console = _console(quiet=not self.is_global_zero)
        try:
            if self.world_size > 1 or not model.resume or not _finished(files, datamodule):
                self._warm_up(model, datamodule, ordered[0])
            for number, (strategy, predictions) in enumerate(zip(ordered, files, strict=True), start=1):
                console.print(f"Strategy {number} of {len(ordered)}: {strategy!r}", highlight=False)
                results.append(self._result(model, datamodule, strategy, predictions))
                comparison = Comparison(results, run or {})
                if self.is_global_zero:
                    comparison.write(folder)
                    tensorboard.write_strategy(comparison, comparison.rows[-1], events / predictions.stem)
        finally:
            if results and self.is_global_zero:
                comparison.print(console)
                tensorboard.write_comparison(comparison, events / tensorboard.COMPARISON_RUN)
                console.print(
                    f"{len(results)} of {len(ordered)} strategies finished. In {folder}: the tables in "
                    "comparison.md and .json, the pictures in pareto.png and depth.png, the texts in predictions/.",
                    highlight=False,
                )
                console.print(
                    f"Side by side in TensorBoard: {tensorboard.command(events)}", highlight=False, soft_wrap=True
                )
        return comparison

    def bench(
        self,
        model: DecodeModule,
        datamodule: GenerationDataModule,
        strategies: list[SkipStrategy],
        prompts: PositiveInt = 4,
        new_tokens: PositiveInt = 50,
        repeats: PositiveInt = 5,
        run: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Measure the speed of decode steps, batch 1 and greedy, interleaved with plain `model.generate`.

        Args:
            model: Holds the loaded model.
            datamodule: Gives the prompts: the first ones of its test split.
            strategies: What to measure besides full depth: class names, or class_path and init_args.
            prompts: How many prompts.
            new_tokens: Tokens to decode from each prompt.
            repeats: How often each side decodes each prompt.
            run: Provenance for the report.

        Returns:
            What bench.json holds.
        """
        return run_bench(
            model.model.to(self.strategy.root_device),
            first_prompts(model, datamodule, prompts, new_tokens),
            strategies,
            new_tokens=new_tokens,
            repeats=repeats,
            output=Path(self.default_root_dir),
            run=run,
        )

    def inspect(
        self,
        model: DecodeModule,
        datamodule: GenerationDataModule,
        examples: PositiveInt = 32,
        text: Literal["references", "generated"] = "references",
        run: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Measure what each layer is worth: how often it predicts what the last one does, what dropping it costs.

        Args:
            model: Holds the loaded model.
            datamodule: The data; examples of its validation split are drawn by its seed.
            examples: How many examples at most.
            text: What is read after the prompts: each example's first reference, or the model's own greedy text.
            run: Provenance for the report.

        Returns:
            What inspect.json holds.
        """
        net = model.model.to(self.strategy.root_device)
        datamodule.prepare_data()
        datamodule.connect_to(model)
        batches = sample_batches(datamodule, "validation", examples)
        if text == "generated":
            texts = [own_text(net, batch, model.max_new_tokens) for batch in track(batches, "decoding")]
        else:
            texts = [batch["pairs"] for batch in batches]
        return run_inspection(
            net,
            texts,
            text=f"{text} of at most {model.max_new_tokens} tokens",
            output=Path(self.default_root_dir),
            run=run,
        )

    def _warm_up(self, model: DecodeModule, datamodule: GenerationDataModule, strategy: SkipStrategy) -> None:
        """Decode one batch without a trace of it, so that the first strategy does not pay for cold caches."""
        limit, file = self.limit_test_batches, model.predictions
        self.limit_test_batches, model.predictions = 1, None
        try:
            self._test_under(strategy, model, datamodule)
        finally:
            self.limit_test_batches, model.predictions = limit, file

    def _result(
        self, model: DecodeModule, datamodule: GenerationDataModule, strategy: SkipStrategy, predictions: Path
    ) -> StrategyResult:
        """Decode the test split under one strategy."""
        model.predictions = str(predictions)
        return self.test_result(model, strategy, self._test_under(strategy, model, datamodule), predictions)

    def test_result(
        self, model: DecodeModule, strategy: SkipStrategy, logged: dict[str, float], predictions: Path
    ) -> StrategyResult:
        """Return what a finished `test` gave; texts and their cost are read back from their file.

        Args:
            model: Which decoded.
            strategy: Under which it did.
            logged: The figures that it logged.
            predictions: The file that it wrote.
        """
        records = PredictionFile(predictions).records()
        efficiency = _efficiency(records)
        scores = {name.removeprefix("test/"): value for name, value in logged.items()}
        return StrategyResult(
            name=repr(strategy),
            strategy=strategy.config(),
            num_layers=decoder_parts(model.model).num_layers,
            scores={name: value for name, value in scores.items() if name not in efficiency},
            efficiency=efficiency,
            examples=records,
            is_oracle=strategy.is_oracle,
        )

    def _test_under(
        self, strategy: SkipStrategy, model: DecodeModule, datamodule: GenerationDataModule
    ) -> dict[str, float]:
        """Run the test split under a strategy, from the same random state each time; return what it logs."""
        self.callbacks.append(strategy)
        try:
            with isolate_rng():
                (logged,) = self.test(model, datamodule=datamodule, verbose=False)
        finally:
            self.callbacks.remove(strategy)
        return dict(logged)


def baseline_first(strategies: Sequence[SkipStrategy]) -> list[SkipStrategy]:
    """Return the strategies with FullDepth first, added where it is missing.

    Raises:
        ValueError: A strategy is listed twice.
    """
    names = [repr(strategy) for strategy in strategies]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"strategies lists {name} {names.count(name)} times: expected each once.")
    others = [strategy for strategy in strategies if not isinstance(strategy, FullDepth)]
    return [FullDepth(), *others]


def prediction_files(folder: Path, strategies: Sequence[SkipStrategy] | None = None) -> list[Path]:
    """Return the files of predictions that a run writes into its folder.

    Args:
        folder: Of the run.
        strategies: Those of a comparison, each with a file of its own; None for any other run.
    """
    if strategies is None:
        return [folder / "predictions.jsonl"]
    names = [_file_name(repr(strategy)) for strategy in baseline_first(strategies)]
    return [folder / "predictions" / f"{number:02}_{name}.jsonl" for number, name in enumerate(names, start=1)]


def first_prompts(model: DecodeModule, datamodule: GenerationDataModule, number: int, new_tokens: int) -> list[Tensor]:
    """Return the first prompts of the test split, each a LongTensor [1, length], not padded.

    Raises:
        ValueError: The split holds fewer.
    """
    context = context_length(model.model)
    room = None if context is None else context - new_tokens
    datamodule.prepare_data()
    examples = datamodule.examples("test")[:number]
    if len(examples) < number:
        raise ValueError(f"prompts={number}: the test split of the data holds only {len(examples)} examples.")
    limit = datamodule.max_prompt_tokens or room
    encoded = [datamodule.template.encode(example.source, model.tokenizer, limit) for example in examples]
    return [torch.tensor([token_ids]) for token_ids, _ in encoded]


def _file_name(text: str) -> str:
    """Return the text with an underscore for each run of characters that a file name should not have."""
    return re.sub(r"[^\w.=-]+", "_", text).strip("_")


def _finished(files: Sequence[Path], datamodule: GenerationDataModule) -> bool:
    """Tell whether there is a prediction for every example in every file."""
    datamodule.prepare_data()
    examples = len(datamodule.examples("test"))
    return all(len(PredictionFile(file).records()) >= examples for file in files)


def _efficiency(records: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Compute depth and speed from prediction records: of all processes, here in one."""
    # the records are those of all processes, and not every process may be here
    efficiency = Efficiency(sync_on_compute=False)
    for cost in batch_costs(records):
        efficiency.update(**cost)
    return {name: float(value) for name, value in efficiency.compute().items()}


def _console(quiet: bool) -> Console:
    """Return a console on which the tables fit: of 120 columns where the output is not a terminal."""
    console = Console(quiet=quiet)
    return console if console.is_terminal else Console(width=120, quiet=quiet)
