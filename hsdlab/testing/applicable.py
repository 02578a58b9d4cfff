"""Which law does not apply to which strategy, and why."""

from collections.abc import Callable

from hsdlab.strategies import SkipStrategy, Verified
from hsdlab.testing.laws import (
    law_2_never_skip,
    law_3_replay,
    law_4_trace,
    law_7_rows,
    law_8_config,
)

NOT_FOR_ORACLES = (law_3_replay, law_4_trace)
"""Laws from which an oracle (``is_oracle``) is exempt, since it reports as not run what it ran."""

NOT_FOR_DRAFTS = (law_2_never_skip, law_3_replay, law_4_trace)
"""Laws that compare pass by pass, which ``Verified`` does not have: its passes carry several tokens."""


def not_applicable(law: Callable[..., None], strategy: SkipStrategy, mode: str | None = None) -> str | None:
    """Find out whether a law applies to a strategy in one way to decode.

    Args:
        law: One of the laws 2 to 8.
        strategy: Its ``never_skip()``, ``is_oracle``, ``rows_depend`` and ``config()`` are read; nothing is decoded.
        mode: A key of ``MODES``. None leaves out the reasons that hold in one way to decode only.

    Returns:
        The reason why the law does not apply; None where it applies.
    """
    if law is law_2_never_skip and strategy.never_skip() is None:
        return "never_skip() is None: no setting of the class is full depth"
    if isinstance(strategy, Verified):
        if mode == "beam":
            return "beam search cannot be verified, and is refused"
        if law in NOT_FOR_DRAFTS:
            return "a pass makes several tokens; tests/decoding/test_verified.py has laws of its own"
    if law in NOT_FOR_ORACLES and strategy.is_oracle:
        return "an oracle reads layers that it reports as not run (is_oracle)"
    if law is law_7_rows and strategy.rows_depend is not None:
        return f"rows_depend: {strategy.rows_depend}"
    if law is law_7_rows and mode == "sampling":
        return "transformers draws the random numbers of sampling for the batch as a whole"
    if law is law_8_config and "<locals>" in strategy.config()["class_path"]:
        return "a config cannot name a class that is defined inside a function"
    return None
