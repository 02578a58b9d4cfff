"""DecodingTrainer: a Trainer that also compares strategies, calibrates and tunes them and measures their speed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, cast

import torch
from jsonargparse.typing import PositiveInt
from lightning.pytorch import Trainer
from rich.console import Console
from rich.progress import track
from torch import Tensor

from hsdlab.calibration import BoundName, LossName, fixed_sequence
from hsdlab.data import GenerationDataModule
from hsdlab.data.sample import sample_batches
from hsdlab.decoding.families import context_length
from hsdlab.errors import UserError
from hsdlab.modules import DecodeModule
from hsdlab.reporting import CalibrationReport, Comparison, StrategyResult, TuningReport, tensorboard
from hsdlab.reporting.inspection import run_inspection
from hsdlab.runs.bench import run_bench
from hsdlab.runs.calibrate import check_calibration, decoded_losses
from hsdlab.runs.inspect import own_text
from hsdlab.runs.strategies import StrategyRuns, baseline_first, prediction_files
from hsdlab.runs.tune import check_tuning, scheduled_classes, tuning_reports
from hsdlab.strategies import ScheduledStrategy, SkipStrategy
from hsdlab.tuning import Goal


class DecodingTrainer(Trainer):
    """A Trainer with more entry points: `compare`, `calibrate`, `tune`, `bench`, `inspect` fill `default_root_dir`."""

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
            UserError: A strategy is listed twice.
        """
        ordered = baseline_first(strategies)
        folder = Path(self.default_root_dir)
        files = prediction_files(folder, ordered)
        runs = StrategyRuns(self, model, datamodule, "test")
        events = folder / tensorboard.FOLDER
        if self.is_global_zero:
            tensorboard.remove_events(events)
        results: list[StrategyResult] = []
        console = _console(quiet=not self.is_global_zero)
        try:
            for number, (strategy, predictions) in enumerate(zip(ordered, files, strict=True), start=1):
                console.print(f"Strategy {number} of {len(ordered)}: {strategy!r}", highlight=False)
                results.append(runs.result(strategy, predictions))
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

    def calibrate(
        self,
        model: DecodeModule,
        datamodule: GenerationDataModule,
        strategies: list[SkipStrategy],
        tolerance: float = 0.05,
        error: float = 0.05,
        loss: LossName = "risk",
        metric: str = "rougeL",
        bound: BoundName = "hoeffding_bentkus",
        run: dict[str, Any] | None = None,
    ) -> CalibrationReport:
        """Find the last setting in a list whose loss against full depth stays within a tolerance, with a guarantee.

        Decodes the validation split at full depth and then under one setting after the other; the first that is not
        shown to be within the tolerance ends it, and later ones are not decoded. The report (calibration.md,
        calibration.json, calibration.png) is written anew after each setting, predictions after each batch: a run
        that is cut short leaves what it has, and goes on with it if `model.resume` is set.

        Args:
            model: Holds the loaded model.
            datamodule: The data.
            strategies: The settings in order, the safest first: class names, or class_path and init_args, of any
                classes. FullDepth, the reference, is run in any case.
            tolerance: Mean loss against full depth that is accepted, between 0 and 1.
            error: Chance that the guarantee fails, between 0 and 1.
            loss: "risk", how much worse an example scores against its references; "textual", 1 - the score of its
                text with full depth's as the reference.
            metric: rouge1, rouge2, rougeL, bertscore_precision, bertscore_recall, bertscore_f1 or exact_match.
            bound: The p-value: "hoeffding_bentkus", "hoeffding", or "binomial" for exact_match.
            run: Provenance for the report.

        Returns:
            The report; its `chosen` is the setting, or full depth where none passed.

        Raises:
            UserError: An option out of its range; a metric without a score for each example; settings that are none,
                oracles, listed twice, or decode a row of a batch otherwise than alone; two examples of one id.
        """
        reference, *settings = baseline_first(strategies)
        datamodule.prepare_data()
        check_calibration(
            strategies,
            tolerance=tolerance,
            error=error,
            bound=bound,
            metric=metric,
            computed=list(model.text_metrics()),
            examples=[example.id for example in datamodule.examples("validation")],
            batch_size=datamodule.batch_size,
        )
        folder = Path(self.default_root_dir)
        files = prediction_files(folder, strategies)
        runs = StrategyRuns(self, model, datamodule, "validation")
        console = _console(quiet=not self.is_global_zero)
        console.print(f"Reference: {reference!r}", highlight=False)
        full = runs.result(reference, files[0])
        names = [repr(setting) for setting in settings]
        report: CalibrationReport | None = None
        decoded = decoded_losses(runs, settings, files[1:], full, loss, metric, console)
        try:
            for calibration in fixed_sequence(decoded, tolerance=tolerance, error=error, bound=bound):
                report = CalibrationReport(calibration, full, names, loss, metric, run or {})
                if self.is_global_zero:
                    report.write(folder)
        finally:
            if report is not None and self.is_global_zero:
                report.print(console)
        assert report is not None  # there is a setting, and the first is always tested
        return report

    def tune(
        self,
        model: DecodeModule,
        datamodule: GenerationDataModule,
        max_loss: float | None = None,
        speedup: float | None = None,
        strategies: Sequence[str] = ("HSD", "SkipDecode"),
        first: list[SkipStrategy] | None = None,
        metric: str = "rougeL",
        trials: PositiveInt = 100,
        examples: PositiveInt = 32,
        decodes: PositiveInt = 8,
        run: dict[str, Any] | None = None,
    ) -> TuningReport:
        """Search the settings of scheduled strategies: the fastest that keeps the quality, or the best at a speed-up.

        Give one of max_loss and speedup. The validation split is decoded at full depth. Then Optuna proposes settings;
        those whose schedule allows enough speed are scored on full depth's own texts by one masked pass each, without
        decoding. Last, settings that none beats in speed and score are decoded, in an order that soon finds the border
        between those that meet the goal and those that do not. The report (tuning.md, tuning.json, frontier.png) is
        written anew after each setting; a run that is cut short goes on with its scores and predictions if
        `model.resume` is set.

        Args:
            model: Holds the loaded model.
            datamodule: The data.
            max_loss: The largest share of full depth's quality that may be lost, such as 0.05.
            speedup: The least measured speed-up of a decode step, such as 1.6.
            strategies: Classes whose settings are searched: names, or dotted paths of your own with a `propose`.
            first: Settings to try before any is proposed, such as those that the model was trained for or a paper's:
                class names, or class_path and init_args.
            metric: The quality: rouge1, rouge2, rougeL, bleu1 to bleu4, bertscore_precision, bertscore_recall or
                bertscore_f1.
            trials: How many settings are tried, the first ones among them.
            examples: How many of full depth's texts a setting is scored on, at most.
            decodes: The most settings to decode besides full depth.
            run: Provenance for the report.

        Returns:
            The report; its `chosen` is the setting, or full depth where none meets the goal.

        Raises:
            UserError: An option out of its range, both or neither of max_loss and speedup, a class or setting without
                a schedule, a class without `propose`, a metric that is not computed, two examples of one id, or nothing
                to keep.
        """
        datamodule.prepare_data()
        check_tuning(
            strategies,
            max_loss=max_loss,
            speedup=speedup,
            metric=metric,
            computed=list(model.text_metrics()),
            max_new_tokens=model.max_new_tokens,
            examples=[example.id for example in datamodule.examples("validation")],
            first=first or (),
            trials=trials,
        )
        folder, console = Path(self.default_root_dir), _console(quiet=not self.is_global_zero)
        report: TuningReport | None = None
        try:
            for report in tuning_reports(
                StrategyRuns(self, model, datamodule, "validation"),
                scheduled_classes(strategies),
                Goal(max_loss, speedup),
                first=cast(list[ScheduledStrategy], first or []),
                metric=metric,
                trials=trials,
                examples=examples,
                decodes=decodes,
                folder=folder,
                run=run or {},
                console=console,
            ):
                if self.is_global_zero:
                    report.write(folder)
        finally:
            if report is not None and self.is_global_zero:
                report.print(console)
        assert report is not None  # the search is always reported
        return report

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


def first_prompts(model: DecodeModule, datamodule: GenerationDataModule, number: int, new_tokens: int) -> list[Tensor]:
    """Return the first prompts of the test split, each a LongTensor [1, length], not padded.

    Raises:
        UserError: The split holds fewer.
    """
    context = context_length(model.model)
    room = None if context is None else context - new_tokens
    datamodule.prepare_data()
    examples = datamodule.examples("test")[:number]
    if len(examples) < number:
        raise UserError(f"prompts={number}: the test split of the data holds only {len(examples)} examples.")
    limit = datamodule.max_prompt_tokens or room
    encoded = [datamodule.template.encode(example.source, model.tokenizer, limit) for example in examples]
    return [torch.tensor([token_ids]) for token_ids, _ in encoded]


def _console(quiet: bool) -> Console:
    """Return a console on which the tables fit: of 120 columns where the output is not a terminal."""
    console = Console(quiet=quiet)
    return console if console.is_terminal else Console(width=120, quiet=quiet)
