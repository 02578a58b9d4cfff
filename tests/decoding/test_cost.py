"""Costs against counts made otherwise: torch's own FLOP counter, and bytes by hand."""

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from hsdlab import CALM, HSD, PABEE, Compose, FullDepth, SkipDecode, generate
from hsdlab.decoding.cost import decode_flops, ideal_speedup
from hsdlab.testing import prompts
from tests.strategies_for_tests import Changing

CLASSIFIER = str(Path(__file__).parents[1] / "exit_classifier_32.safetensors")


GREEDY = [
    FullDepth(),
    HSD(1, 0, 3),
    SkipDecode(1, 2),
    Changing(),
    CALM(0.5),
    CALM(0.9, shortlist=8),
    CALM(0.5, gate=0.5),
    CALM(0.9, probe_layers=2),
    CALM(0.5, measure="saturation"),
    CALM(0.5, measure="classifier", classifier=CLASSIFIER),
    Compose(HSD(2, 0, 4), CALM(0.5)),
]
BEAMS = [FullDepth(), HSD(1, 0, 3), Changing(), CALM(0.5), PABEE(1, shortlist=4)]
PROJECTED = [FullDepth(), CALM(0.5), CALM(0.9, shortlist=8)]  # opt has a projection between layers and head


@pytest.mark.parametrize(
    ("family", "beams", "strategy"),
    [
        *(("llama", 1, strategy) for strategy in GREEDY),
        *(("llama", 3, strategy) for strategy in BEAMS),
        *(("opt", 1, strategy) for strategy in PROJECTED),
    ],
    ids=str,
)
def test_flops_equal_torchs_counter(tiny, strategy, beams, family):
    """torch counts every matrix product that really happens; the prompt pass is taken off by a second run."""
    model = tiny(family)
    model.set_attn_implementation("eager")  # as matrix products, which torch counts on every machine
    input_ids, mask = prompts(1)
    call = {"input_ids": input_ids, "attention_mask": mask, "strategy": strategy, "eos_token_id": None}
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as both:
            output = generate(model, **call, max_new_tokens=9, num_beams=beams)
        with torch.no_grad(), FlopCounterMode(display=False) as prompt:
            generate(model, **call, max_new_tokens=1, num_beams=beams)
    finally:
        model.set_attn_implementation("sdpa")
    counted = both.get_total_flops() - prompt.get_total_flops()
    if family == "opt":
        counted -= 2 * 16 * 32 * output.trace.compute_steps  # from the embedding to the layers
    rotary = 9 * 4 / 2 * 2  # angles are a tiny product too: length 1, head dim 8 / 2, once a pass
    assert decode_flops(model, output.trace) == pytest.approx(counted, rel=0.01, abs=20 * rotary)


def test_ideal_speedup_is_the_ratio_of_weights_read(tiny):
    model = tiny()
    layer = sum(p.numel() for p in model.model.layers[0].parameters())
    outside = model.lm_head.weight.numel() + model.model.norm.weight.numel()
    assert ideal_speedup(model, [range(6)] * 3) == 1.0
    expected = 2 * (6 * layer + outside) / ((2 * layer + outside) + (1 * layer + outside))
    assert ideal_speedup(model, [[0, 5], [5]]) == pytest.approx(expected)
    four = [[0, 5], [0, 5], [0, 5], [5]]  # three texts take the first step, one the second
    assert ideal_speedup(model, [[0, 5], [5], []], taken=[3, 1, 0]) == pytest.approx(ideal_speedup(model, four))
