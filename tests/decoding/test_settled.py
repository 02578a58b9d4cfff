"""The logits of the check at which a token exits are the token's own: the head is not applied to it again."""

import pytest
import torch

from hsdlab import CALM, DeeBERT, generate
from hsdlab import testing as laws
from hsdlab.decoding.families import decoder_parts


def decoded(strategy, rows=3, mode="greedy"):
    """The states that the head was applied to in decode steps, and the decode; its logits are those of replay."""
    model, seen = laws.tiny_model(dtype=torch.float64), []
    parts = decoder_parts(model)
    own = parts.head.forward
    parts.head.forward = lambda hidden: seen.append(hidden[..., 0].numel()) or own(hidden)
    input_ids, mask = laws.prompts(rows)
    options = {"max_new_tokens": 6, "eos_token_id": None, **laws.MODES[mode]}
    out = generate(model, input_ids=input_ids, attention_mask=mask, strategy=strategy, **options)
    assert "forward" in vars(parts.head)  # what was there before is there again
    return sum(seen) - rows * laws.MODES[mode].get("num_beams", 1), out.trace


@pytest.mark.parametrize(
    ("strategy", "applied"),
    [
        (CALM(0.0, measure="saturation"), 5 * 3),  # no check uses the head
        (CALM(1e-9), 5 * 3),  # all exit at the first check, which is the only time
        (CALM(1e-9, late_exit=True), 2 * 5 * 3),  # the layer of the exit is another one
        (CALM(1e-9, shortlist=4), 5 * 3),
        (CALM(0.999999, probe_layers=[2]), 2 * 5 * 3),  # nobody exits
    ],
    ids=repr,
)
def test_the_head_is_applied_once_to_a_token_that_exits_by_its_prediction(strategy, applied):
    states, trace = decoded(strategy)
    assert states == applied
    parts = decoder_parts(laws.tiny_model())
    size = parts.vocabulary_size * parts.head_weights[1]
    assert trace.probes.weights == (applied - 5 * 3) * size  # beyond the tokens' own predictions


@pytest.mark.parametrize("mode", ["greedy", "beam"])
def test_rows_that_exit_at_different_layers_or_never(mode):
    model, strategy = laws.tiny_model(dtype=torch.float64), DeeBERT(0.7)
    laws.law_3_replay(model, strategy, mode)
    _, trace = decoded(strategy, mode=mode)
    depths = trace.depths[trace.live]
    assert len(depths.unique()) > 1
    assert trace.probes.weights > 0
