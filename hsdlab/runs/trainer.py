"""DecodingTrainer: the Trainer whose methods are the subcommands of `evaluate.py`."""

from collections.abc import Sequence
from typing import cast

from jsonargparse.typing import PositiveInt
from lightning.pytorch import Trainer

from hsdlab.calibration import BoundName, LossName
from hsdlab.data import GenerationDataModule
from hsdlab.decoding.token_counts import TokenCounts
from hsdlab.modules import DecodeModule
from hsdlab.records.bench import BenchResult
from hsdlab.records.calibration import CalibrationResult
from hsdlab.records.comparison import Comparison
from hsdlab.records.draft_tuning import DraftTuningResult
from hsdlab.records.inspection import InspectionResult
from hsdlab.records.provenance import RunInfo
from hsdlab.records.tuning import TuningResult
from hsdlab.runs.bench import bench
from hsdlab.runs.bench_cells import BenchOptions, CellDtype
from hsdlab.runs.calibrate import calibrate
from hsdlab.runs.compare import compare
from hsdlab.runs.count_tokens import count_tokens
from hsdlab.runs.draft_options import LENGTHS, VOCABULARIES, DraftTuningOptions, check_goal
from hsdlab.runs.inspect import Texts, inspect
from hsdlab.runs.tune import TuningOptions, tune
from hsdlab.runs.tune_drafts import tune_drafts
from hsdlab.strategies import ScheduledStrategy, SkipStrategy
from hsdlab.tuning import Goal


class DecodingTrainer(Trainer):
    """A Trainer with more entry points, each of which is a function of hsdlab.runs and fills `default_root_dir`.

    LightningCLI makes subcommands of a Trainer's methods, and options of their parameters.
    """

    def compare(
        self,
        model: DecodeModule,
        datamodule: GenerationDataModule,
        strategies: list[SkipStrategy],
        run: RunInfo | None = None,
    ) -> Comparison:
        """Decode the test split under each strategy; write and print quality against cost.

        Args:
            model: Holds the loaded model.
            datamodule: The data.
            strategies: The strategies to compare: class names, or class_path and init_args.
            run: Provenance for the records. None notes it now.

        Returns:
            The comparison of all strategies.
        """
        return compare(self, model, datamodule, strategies, self.default_root_dir, run=run)

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
        run: RunInfo | None = None,
    ) -> CalibrationResult:
        """Find the last setting in a list whose loss against full depth stays within a tolerance, with a guarantee.

        Args:
            model: Holds the loaded model.
            datamodule: The data.
            strategies: The settings in order, the safest first: class names, or class_path and init_args, of any
                classes. FullDepth, the reference, is run in any case.
            tolerance: Accepted mean loss against full depth, between 0 and 1.
            error: Probability that the guarantee fails, between 0 and 1.
            loss: "risk", how much worse an example scores against its references; "textual", 1 - the score of its
                text with full depth's as the reference.
            metric: rouge1, rouge2, rougeL, bertscore_precision, bertscore_recall, bertscore_f1 or exact_match.
            bound: The p-value: "hoeffding_bentkus", "hoeffding", or "binomial" for exact_match.
            run: Provenance for the record. None notes it now.

        Returns:
            All tests; its `chosen` is the setting, or full depth where none passed.
        """
        return calibrate(
            self,
            model,
            datamodule,
            strategies,
            self.default_root_dir,
            tolerance=tolerance,
            error=error,
            loss=loss,
            metric=metric,
            bound=bound,
            run=run,
        )

    def tune(
        self,
        model: DecodeModule,
        datamodule: GenerationDataModule,
        max_loss: float | None = None,
        speedup: float | None = None,
        classes: Sequence[str] = ("HSD", "SkipDecode"),
        first: list[SkipStrategy] | None = None,
        metric: str = "rougeL",
        trials: PositiveInt = 100,
        examples: PositiveInt = 32,
        decodes: PositiveInt = 8,
        lossless: bool = False,
        draft_lengths: Sequence[PositiveInt] = LENGTHS,
        draft_vocabularies: Sequence[PositiveInt | str | None] = VOCABULARIES,
        run: RunInfo | None = None,
    ) -> TuningResult | DraftTuningResult:
        """Search the settings of scheduled strategies: the fastest that keeps the quality, or the best at a speed-up.

        Give one of max_loss, speedup and lossless.

        Args:
            model: Holds the loaded model.
            datamodule: The data.
            max_loss: The largest share of full depth's quality that may be lost, such as 0.05.
            speedup: The least measured speed-up of a decode step, such as 1.6.
            classes: Classes whose settings are searched: names, or dotted paths of your own with a `propose`.
            first: Settings to try before any is proposed, such as those that the model was trained for or a paper's:
                class names, or class_path and init_args.
            metric: The quality: rouge1, rouge2, rougeL, bleu1 to bleu4, bertscore_precision, bertscore_recall or
                bertscore_f1. With lossless it is not read.
            trials: How many settings are tried, the first ones among them.
            examples: How many of full depth's texts a setting is scored on, at most.
            decodes: The most settings to decode besides full depth.
            lossless: Search the fastest draft of Verified; no token of the text changes.
            draft_lengths: With lossless, the numbers of drafted tokens to try.
            draft_vocabularies: With lossless, the draft vocabularies to try, such as '[null, 8000]': null for all
                tokens, a number, or a file of `hsdlab count-tokens`.
            run: Provenance for the record. None notes it now.

        Returns:
            All settings; its `chosen_row` is the chosen one, or full depth where none meets the goal.
        """
        check_goal(lossless, max_loss, speedup, draft_lengths, draft_vocabularies)
        given = cast(list[ScheduledStrategy], first or [])
        if lossless:
            drafts = DraftTuningOptions(classes, given, trials, examples, decodes, draft_lengths, draft_vocabularies)
            return tune_drafts(self, model, datamodule, drafts, self.default_root_dir, run=run)
        options = TuningOptions(Goal(max_loss, speedup), classes, given, metric, trials, examples, decodes)
        return tune(self, model, datamodule, options, self.default_root_dir, run=run)

    def bench(
        self,
        model: DecodeModule,
        datamodule: GenerationDataModule,
        strategies: list[SkipStrategy],
        prompts: PositiveInt = 4,
        new_tokens: PositiveInt = 50,
        repeats: PositiveInt = 5,
        batch_sizes: Sequence[PositiveInt] = (1,),
        beams: Sequence[PositiveInt] = (1,),
        dtypes: Sequence[CellDtype] = (),
        prompt_tokens: Sequence[PositiveInt] = (),
        removed_layers: bool = False,
        assistant_early_exit: PositiveInt | None = None,
        run: RunInfo | None = None,
    ) -> BenchResult:
        """Measure the speed of decode steps in alternation with plain `model.generate`.

        Each combination of batch_sizes, beams, dtypes and prompt_tokens is measured by itself. By default there is one:
        batch size 1, greedy, the model's dtype, the prompts as they are.

        Args:
            model: Holds the loaded model.
            datamodule: Gives the prompts: the first ones of its test split.
            strategies: Strategies to measure besides full depth: class names, or class_path and init_args.
            prompts: Number of prompts; with larger batches, number of batches of prompts.
            new_tokens: Tokens to decode from each prompt, 2 or more.
            repeats: How often each strategy decodes each prompt, after one round of warm-up.
            batch_sizes: Sequences per batch, such as '[1, 8]'.
            beams: Beams per sequence, such as '[1, 4]'; 1 decodes greedily.
            dtypes: Dtypes of the weights, such as '[float32, bfloat16]'; by default the one of --model.dtype.
            prompt_tokens: Lengths of the prompts in tokens, such as '[100, 1000]'; by default they are as they are.
            removed_layers: Measure each layer schedule also as the limit of skipping: plain `model.generate` with only
                the schedule's layers in the model.
            assistant_early_exit: Measure transformers' option of this name too: so many layers draft tokens, the whole
                model verifies them (self-speculation as in LayerSkip). Batch size 1 and greedy only.
            run: Provenance for the record. None notes it now.

        Returns:
            The figures of plain generate, FullDepth and the strategies, with the raw times of each round.
        """
        options = BenchOptions(
            prompts=prompts,
            new_tokens=new_tokens,
            repeats=repeats,
            batch_sizes=batch_sizes,
            beams=beams,
            dtypes=dtypes,
            prompt_tokens=prompt_tokens,
            removed_layers=removed_layers,
            assistant_early_exit=assistant_early_exit,
        )
        return bench(self, model, datamodule, strategies, self.default_root_dir, options=options, run=run)

    def inspect(
        self,
        model: DecodeModule,
        datamodule: GenerationDataModule,
        examples: PositiveInt = 32,
        text: Texts = "references",
        before: str | None = None,
        run: RunInfo | None = None,
    ) -> InspectionResult:
        """Measure what each layer is worth: how often it predicts what the last one does, what dropping it costs.

        Args:
            model: Holds the loaded model.
            datamodule: The data. Its seed draws the examples from its validation split.
            examples: The most examples.
            text: The text after the prompts: each example's first reference, or the model's own greedy text.
            before: The folder of an earlier inspect on the same examples, of the model before training, say.
            run: Provenance for the record. None notes it now.

        Returns:
            The figures of all layers, with bootstrap intervals over the examples.
        """
        return inspect(
            self, model, datamodule, self.default_root_dir, examples=examples, text=text, before=before, run=run
        )

    def count_tokens(
        self, model: DecodeModule, datamodule: GenerationDataModule, size: PositiveInt = 8000
    ) -> TokenCounts:
        """Count the tokens of the texts of the training split, and write the most frequent ones.

        The texts are the references, or those of --data.targets, each with its end-of-sequence token.

        Args:
            model: Holds the tokenizer.
            datamodule: The data.
            size: The most tokens to write.

        Returns:
            The tokens, most frequent first.
        """
        return count_tokens(self, model, datamodule, self.default_root_dir, size=size)
