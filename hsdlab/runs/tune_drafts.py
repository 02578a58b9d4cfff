"""Tune drafts: search the draft of Verified that decodes fastest; the text is that of full depth."""

from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch import Trainer
from rich.console import Console

from hsdlab.data import GenerationDataModule
from hsdlab.decoding.families import decoder_parts
from hsdlab.decoding.forced import LayerSchedule
from hsdlab.modules import DecodeModule
from hsdlab.progress import Steps
from hsdlab.records.comparison import compare_results
from hsdlab.records.draft_tuning import DraftPrediction, DraftTuningResult, MeasuredDraft, TunedDraft
from hsdlab.records.provenance import RunInfo, run_info
from hsdlab.records.run_folder import prediction_file
from hsdlab.records.strategy import StrategyConfig
from hsdlab.records.strategy_result import StrategyResult
from hsdlab.reporting.draft_tuning import print_draft_tuning, write_draft_tuning
from hsdlab.reporting.tables import console
from hsdlab.runs.draft_options import DraftTuningOptions, check_draft_tuning
from hsdlab.runs.folder import holding_folder
from hsdlab.runs.replayed import own_texts, search_seed, searched
from hsdlab.runs.rotation import decode_in_turn, results_in
from hsdlab.runs.strategies import StrategyRuns
from hsdlab.runs.tunable import scheduled_classes
from hsdlab.strategies import FullDepth, ScheduledStrategy, SkipStrategy, Verified
from hsdlab.tuning import AgreementFile, Draft, ReplayAgreement, drafts_to_measure, predict, search_drafts


@holding_folder
def tune_drafts(
    trainer: Trainer,
    module: DecodeModule,
    datamodule: GenerationDataModule,
    options: DraftTuningOptions,
    folder: str | Path,
    *,
    run: RunInfo | None = None,
) -> DraftTuningResult:
    """Search the draft, its length and its vocabulary with which `Verified` decodes fastest.

    The validation split is decoded at full depth. Then Optuna proposes drafts. One masked pass over full depth's texts
    finds where each would write the same token, which predicts its speed-up for each length and vocabulary. Last, the
    drafts with the highest predictions and `FullDepth` decode the split, each batch by all of them in turn. The fastest
    is chosen, by the time of decode steps; the prefill, which they share, does not count. A run that is cut short goes
    on with its agreements and predictions if `module.resume` is set.

    Args:
        trainer: Runs the module; its callbacks hold no strategy.
        module: Holds the loaded model; decodes greedily.
        datamodule: Its validation split is decoded.
        options: The drafts, and the size of the search.
        folder: Folder of the report, the agreements and the predictions. A missing folder is created.
        run: Provenance for the record. None notes it now.

    Returns:
        All drafts; its `chosen_row` is that of the fastest, or full depth's where no draft is faster.

    Raises:
        UserError: An option out of its range, a class or setting without a schedule, a class without `propose`, beams,
            sampling, a model that Verified does not take, or two examples of one id.
        RunError: The data or the Trainer's limits gave no batch.
    """
    datamodule.prepare_data()
    check_draft_tuning(
        options,
        decoding={
            "num_beams": module.num_beams,
            "generate_kwargs": module.generate_kwargs,
            "compile": module.compiled,
        },
        max_new_tokens=module.max_new_tokens,
        examples=[example.id for example in datamodule.examples("validation")],
    )
    folder, run = Path(folder), run or run_info(generation=module.generation().record())
    terminal = console(quiet=not trainer.is_global_zero)
    runs = StrategyRuns(trainer, module, datamodule, "validation")
    terminal.print(f"Texts to predict on: {FullDepth()!r}", highlight=False)
    full = runs.result(FullDepth(), prediction_file(folder, "texts"))
    drafts, scored_texts = searched(
        runs, terminal, options.trials, lambda steps: _searched(runs, options, full, folder, steps)
    )
    places = drafts_to_measure(drafts, options.decodes)
    results = _measured(runs, folder, terminal, [_verified(drafts[draft], place) for draft, place in places])
    found = _result(run, scored_texts, drafts, places, results)
    if trainer.is_global_zero:
        write_draft_tuning(found, folder)
        print_draft_tuning(found, terminal)
    return found


def _searched(
    runs: StrategyRuns, options: DraftTuningOptions, full: StrategyResult, folder: Path, steps: Steps
) -> tuple[list[Draft], int]:
    """Return the drafts that were tried, and on how many texts their speed was predicted."""
    net = runs.module.model.to(runs.trainer.strategy.root_device)
    parts, max_steps = decoder_parts(net), runs.module.max_new_tokens
    batches = own_texts(runs, full, options.examples)
    file, replay = AgreementFile(folder / "scores.jsonl"), ReplayAgreement(net, batches)
    lengths = [int(length) for length in options.lengths]  # the command line's numbers are of a class of their own
    vocabularies = [int(each) if isinstance(each, int) else each for each in options.vocabularies]

    def predictions(draft: ScheduledStrategy, schedule: LayerSchedule) -> list[DraftPrediction]:
        strategies = {each: Verified(draft, draft_vocabulary=each) for each in vocabularies}
        for strategy in strategies.values():
            strategy.check_model(parts)
        missing = [each for each in vocabularies if file.get(schedule, each) is None]
        if missing:
            for vocabulary, agreements in replay(draft, schedule, missing).items():
                file.add(schedule, vocabulary, draft.config(), agreements)
        return [
            predict(file.get(schedule, vocabulary) or (), length, max_steps, cost, vocabulary)
            for vocabulary, strategy in strategies.items()
            for cost in [strategy.cost_of_a_draft(parts, max_steps)]
            for length in lengths
        ]

    drafts = search_drafts(
        scheduled_classes(options.classes),
        num_layers=parts.num_layers,
        max_steps=max_steps,
        predictions=predictions,
        trials=steps.counting(range(options.trials)),
        seed=search_seed(),
        first=options.first,
    )
    return drafts, sum(len(batch["input_ids"]) for batch in batches)


def _verified(draft: Draft, place: int) -> Verified:
    prediction = draft.predictions[place]
    return Verified(draft.strategy, prediction.num_draft_tokens, draft_vocabulary=prediction.draft_vocabulary)


def _measured(runs: StrategyRuns, folder: Path, terminal: Console, drafts: Sequence[Verified]) -> list[StrategyResult]:
    """Decode the split under full depth and the drafts in turn."""
    strategies: list[SkipStrategy] = [FullDepth(), *drafts]
    for number, strategy in enumerate(drafts, start=1):
        terminal.print(f"Draft {number} of {len(drafts)}: {strategy!r}", highlight=False)
    files = [prediction_file(folder, repr(strategy)) for strategy in strategies]
    runs.warm_up(files)
    decode_in_turn(runs, strategies, files)
    return results_in(runs, strategies, files)


def _result(
    run: RunInfo,
    scored_texts: int,
    drafts: Sequence[Draft],
    places: Sequence[tuple[int, int]],
    results: Sequence[StrategyResult],
) -> DraftTuningResult:
    full, *of_drafts = results
    comparison = compare_results(results, run, in_turn=True)
    speed_ups = [row.speed_up for row in comparison.rows[1:]]
    faster = [place for place, speed_up in enumerate(speed_ups) if speed_up > 1]
    return DraftTuningResult(
        run=run,
        scored_texts=scored_texts,
        drafts=tuple(
            TunedDraft(
                name=repr(draft.strategy),
                strategy=StrategyConfig.of(draft.strategy.config()),
                average_layers=draft.average_layers,
                predictions=draft.predictions,
            )
            for draft in drafts
        ),
        measured=tuple(
            MeasuredDraft(draft, place, _other_texts(result, full))
            for (draft, place), result in zip(places, of_drafts, strict=True)
        ),
        comparison=comparison,
        chosen=max(faster, key=speed_ups.__getitem__, default=None),
    )


def _other_texts(result: StrategyResult, full: StrategyResult) -> int:
    texts = {record.id: record.token_ids for record in full.examples}
    return sum(record.token_ids != texts[record.id] for record in result.examples)
