"""Verified decoding: whatever drafts, the greedy text is that of full depth, token by token."""

import pytest
import torch

from hsdlab import CALM, HSD, FullDepth, SkipDecode, StaticDepth, Verified, generate
from hsdlab.testing import prompts
from tests.strategies_for_tests import RandomPlan

NEW = 14
DRAFTS = [
    HSD(2, 0, 4),
    SkipDecode(2, 5),
    StaticDepth(3),
    CALM(0.3),
    RandomPlan(share=0.5),
    FullDepth(),
]


def call(rows=3, **options):
    ids, mask = prompts(rows)
    return {"input_ids": ids, "attention_mask": mask, "max_new_tokens": NEW, "eos_token_id": [3, 4, 5], **options}


@pytest.mark.parametrize("draft", DRAFTS, ids=repr)
@pytest.mark.parametrize("count", [1, 4, 20])
@pytest.mark.parametrize("adaptive", [False, True])
def test_greedy_text_is_that_of_full_depth(family_model, draft, count, adaptive):
    expected = generate(family_model, strategy=FullDepth(), **call(), output_scores=True)
    output = generate(family_model, strategy=Verified(draft, count, adaptive), **call(), output_scores=True)
    assert torch.equal(output.sequences, expected.sequences)
    assert output.trace.average_layers == 6
    assert torch.equal(output.trace.executed, expected.trace.executed)
    for step, live in enumerate(torch.cat([torch.ones(1, 3, dtype=torch.bool), expected.trace.live])):
        torch.testing.assert_close(output.scores[step][live], expected.scores[step][live], rtol=1e-6, atol=1e-6)
