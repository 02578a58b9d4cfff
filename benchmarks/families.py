"""Fill docs/families.md with what tiny models of all families show: ``python -m benchmarks.families``.

A test fails when the page's families are not those of the suite.
"""

from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from benchmarks.markers import filled
from hsdlab import CALM, FullDepth, SkipStrategy, UserError, Verified
from hsdlab import testing as laws
from hsdlab.reporting.markdown import markdown_table
from tests.strategies_for_tests import ChangingPrompt, RandomPlan

PAGE = Path(__file__).parents[1] / "docs/families.md"
FAMILIES = laws.MORE_FAMILIES | laws.ENCODER_DECODERS
SKIPPING = [RandomPlan(share=0.5), ChangingPrompt(), CALM(0.4, probe_layers=2, shortlist=8)]


def of_largest(got: Tensor, expected: Tensor) -> float:
    """The largest difference of logits, as a share of the largest logit."""
    return float((got - expected).abs().max() / expected.abs().max())


def from_generate(model: PreTrainedModel, mode: str) -> float:
    """How far the logits of full depth are from those of plain ``generate``."""
    call = {"max_new_tokens": laws.NEW_TOKENS, "eos_token_id": None, **laws.MODES[mode]}
    here = laws.decode(model, FullDepth(), mode, eos_token_id=None)
    input_ids, mask = laws.prompts_for(model)
    with laws.watched(model) as (logits, _), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model.generate(input_ids=input_ids, attention_mask=mask, **call)
    return max(of_largest(got, expected) for got, expected in zip(here.logits, logits, strict=True))


def from_replay(model: PreTrainedModel, strategy: SkipStrategy) -> float:
    """How far the logits of a decode with skipped layers are from those of ``replay``."""
    seen = laws.decode(model, strategy, eos_token_id=None)
    expected = laws.replayed(model, seen.output)[:, seen.output.trace.prompt_length - 1 : -1]
    return of_largest(torch.stack(seen.logits, dim=1), expected)


def takes(model: PreTrainedModel, strategy: SkipStrategy) -> bool:
    """Whether a strategy decodes the model."""
    try:
        laws.decode(model, strategy, eos_token_id=None)
    except UserError:
        return False
    return True


def row(name: str) -> list[str]:
    """The line of one of ``FAMILIES``."""
    family, model = FAMILIES[name], laws.tiny_model(name)
    return [
        family.models,
        f"`{family.model_type}`",
        family.adds,
        str(model.dtype).removeprefix("torch."),
        f"{max(from_generate(model, mode) for mode in laws.MODES):.0e}",
        f"{max(from_replay(model, strategy) for strategy in SKIPPING if takes(model, strategy)):.0e}",
        "yes" if takes(model, Verified(RandomPlan(share=0.5), 3)) else "refused",
    ]


def table(rows: list[list[str]]) -> str:
    """The lines of all families."""
    heads = ["Models", "`model_type`", "What they add", "Tested in", "From `generate`", "From `replay`", "`Verified`"]
    return markdown_table(heads, rows, align=["left"] * 4 + ["right"] * 2 + ["left"])


if __name__ == "__main__":
    whole = table([row(name) for name in FAMILIES])
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), "families", whole), encoding="utf-8")
