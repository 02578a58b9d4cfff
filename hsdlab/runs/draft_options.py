"""The options of `tune --lossless`, and what they refuse before anything is decoded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hsdlab.errors import UserError
from hsdlab.runs.tunable import check_search
from hsdlab.strategies import FullDepth, ScheduledStrategy, Verified

LENGTHS: tuple[int, ...] = (1, 2, 4, 8)
VOCABULARIES: tuple[int | str | None, ...] = (None,)


@dataclass(frozen=True)
class DraftTuningOptions:
    """Which drafts a tuning looks for, and how long.

    Attributes:
        classes: Names of the classes whose settings are searched, or dotted paths of your own with a `propose`.
        first: Settings to try before any is proposed, such as those that the model was trained for.
        trials: How many settings are tried, the first ones among them.
        examples: On how many of full depth's texts the speed of a draft is predicted, at most.
        decodes: The most drafts to measure beside full depth.
        lengths: Numbers of drafted tokens to try (`num_draft_tokens` of :class:`~hsdlab.Verified`).
        vocabularies: Draft vocabularies to try (`draft_vocabulary` of `Verified`); None for all tokens.
    """

    classes: Sequence[str] = ("HSD", "SkipDecode")
    first: Sequence[ScheduledStrategy] = ()
    trials: int = 100
    examples: int = 32
    decodes: int = 8
    lengths: Sequence[int] = LENGTHS
    vocabularies: Sequence[int | str | None] = VOCABULARIES


def check_goal(
    lossless: bool,
    max_loss: float | None,
    speedup: float | None,
    lengths: Sequence[int] = LENGTHS,
    vocabularies: Sequence[int | str | None] = VOCABULARIES,
) -> None:
    """Refuse goals that exclude each other, and options of a goal that is not given.

    Args:
        lossless: Whether the draft of `Verified` is searched.
        max_loss: A goal of the search for quality.
        speedup: The other one.
        lengths: See `DraftTuningOptions`.
        vocabularies: Likewise.

    Raises:
        UserError: The message names the options.
    """
    goals = {"max-loss": max_loss, "speedup": speedup}
    given = [f"--{name}={value:g}" for name, value in goals.items() if value is not None]
    if lossless and given:
        raise UserError(
            f"Got --lossless and {' and '.join(given)}: expected one of them. With --lossless the text is that of full "
            "depth, so that there is no loss to limit, and the fastest draft is chosen."
        )
    drafts = {"draft_lengths": (lengths, LENGTHS), "draft_vocabularies": (vocabularies, VOCABULARIES)}
    for name, (value, default) in drafts.items():
        if not lossless and tuple(value) != default:
            raise UserError(f"{name}={_listed(value)} is for --lossless, which is not given. Add it, or leave it out.")


def check_draft_tuning(
    options: DraftTuningOptions, *, decoding: Mapping[str, Any], max_new_tokens: int, examples: Sequence[str]
) -> None:
    """Refuse a search for drafts that could not end well.

    Args:
        options: Those of the search.
        decoding: "num_beams", "generate_kwargs" and "compile" of DecodeModule.
        max_new_tokens: T; 2 or more.
        examples: Ids of the validation examples, each once.

    Raises:
        UserError: One of them does not fit; the message names the option.
        RunError: Optuna is not installed.
    """
    check_search(
        options.classes, max_new_tokens=max_new_tokens, examples=examples, first=options.first, trials=options.trials
    )
    if (beams := decoding["num_beams"]) > 1:
        raise UserError(
            f"num_beams={beams}: beam search compares all beams after every token, so that drafted tokens cannot be "
            "verified. --lossless needs --model.num_beams=1."
        )
    if (decoding["generate_kwargs"] or {}).get("do_sample"):
        raise UserError(
            "generate_kwargs: do_sample=True, and replay can predict the acceptance of greedy drafts only. Leave it "
            "out. `compare` measures Verified while sampling."
        )
    if decoding["compile"]:
        raise UserError("compile=True: verified drafts cannot be compiled yet. Leave it out.")
    for name, values in (("draft_lengths", options.lengths), ("draft_vocabularies", options.vocabularies)):
        if not values or len(set(values)) < len(values):
            raise UserError(f"{name}={_listed(values)}: expected one value or more, each once.")
    for length in options.lengths:
        Verified(FullDepth(), length)  # refuses a number below 1
    trial_drafts(options)  # likewise


def trial_drafts(options: DraftTuningOptions) -> list[Verified]:
    """Make drafts that show what the model or the options of decoding refuse.

    Args:
        options: Those of the search.

    Returns:
        A draft at full depth for each vocabulary, then the settings to try first.
    """
    whole = [Verified(FullDepth(), draft_vocabulary=size) for size in options.vocabularies]
    return [*whole, *(Verified(setting) for setting in options.first)]


def _listed(values: Sequence[int | str | None]) -> str:
    return f"[{','.join('null' if value is None else str(value) for value in values)}]"
