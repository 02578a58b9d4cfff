"""The laws that every strategy obeys, for the project's tests and for strategies of your own.

    from hsdlab.testing import check_strategy
    print(check_strategy(MyStrategy(keep=6)))

raises :class:`LawViolationError` with every law that the strategy breaks, and why. It returns which laws were checked,
and which do not apply to the strategy, and why. The laws are numbered as in CONTRIBUTING.md. The first one (full depth
equals plain ``generate``) concerns the engine and is in the project's tests.
"""

from hsdlab.testing.applicable import NOT_FOR_ORACLES, not_applicable
from hsdlab.testing.check import LawReport, check_strategy
from hsdlab.testing.expect import LawViolationError
from hsdlab.testing.laws import (
    LAWS_OF_A_DECODE,
    law_2_never_skip,
    law_3_replay,
    law_4_trace,
    law_5_restored,
    law_6_no_state,
    law_7_rows,
    law_8_config,
    law_9_knob,
    replayed,
)
from hsdlab.testing.model_check import ModelReport, Trial, check_model
from hsdlab.testing.reduced import reduced_config, reduced_model
from hsdlab.testing.remembered import RememberedDecodes
from hsdlab.testing.tiny import (
    ENCODER_DECODERS,
    MORE_FAMILIES,
    PROMPT_TOKENS,
    TINY_FAMILIES,
    VOCABULARY,
    TinyFamily,
    prompts,
    prompts_for,
    tiny_model,
)
from hsdlab.testing.watching import END_TOKENS, MODES, NEW_TOKENS, Decode, Passes, decode, watched

__all__ = [
    "ENCODER_DECODERS",
    "END_TOKENS",
    "LAWS_OF_A_DECODE",
    "MODES",
    "MORE_FAMILIES",
    "NEW_TOKENS",
    "NOT_FOR_ORACLES",
    "PROMPT_TOKENS",
    "TINY_FAMILIES",
    "VOCABULARY",
    "Decode",
    "LawReport",
    "LawViolationError",
    "ModelReport",
    "Passes",
    "RememberedDecodes",
    "TinyFamily",
    "Trial",
    "check_model",
    "check_strategy",
    "decode",
    "law_2_never_skip",
    "law_3_replay",
    "law_4_trace",
    "law_5_restored",
    "law_6_no_state",
    "law_7_rows",
    "law_8_config",
    "law_9_knob",
    "not_applicable",
    "prompts",
    "prompts_for",
    "reduced_config",
    "reduced_model",
    "replayed",
    "tiny_model",
    "watched",
]
