"""The ten laws (architecture.md; CONTRIBUTING.md), for every strategy found, every family and every way to decode."""

import pytest
import torch

from hsdlab import (
    CALM,
    HSD,
    PABEE,
    Compose,
    DeeBERT,
    FullDepth,
    LearnedExit,
    OracleExit,
    ScheduledStrategy,
    SkipDecode,
    SubLayerStrategy,
    replay,
)
from hsdlab import testing as laws
from hsdlab.decoding.families import decoder_parts
from tests.law_cells import ALL, CLASSIFIER, ROUTER, SETTINGS, by_family, cells, ids
from tests.reference import slow
from tests.strategies_for_tests import RandomPlan


@pytest.mark.parametrize("layer", range(6))
def test_dropping_a_layer_changes_the_logits(family_model, layer):
    """Without this, the laws would hold for a model whose layers do nothing."""
    input_ids, mask = laws.prompts(3)
    executed = torch.ones(3, laws.PROMPT_TOKENS, 6, dtype=torch.bool)
    with torch.no_grad():
        full = replay(family_model, input_ids=input_ids, attention_mask=mask, executed=executed)
        executed[:, -1, layer] = False
        dropped = replay(family_model, input_ids=input_ids, attention_mask=mask, executed=executed)
    assert (full[:, -1] - dropped[:, -1]).abs().max() > 0.1
    assert torch.equal(full[:, :-1], dropped[:, :-1])


@pytest.mark.parametrize("mode", laws.MODES)
@pytest.mark.parametrize("rows", [[0], [0, 1, 2]], ids=["single", "batch"])
def test_law_1_full_depth_equals_plain_generate(family_model, mode, rows):
    _compare_with_plain_generate(family_model, mode, rows)


def test_laws_1_and_3_with_eager_attention(tiny, family_model):
    """float32: in float64, transformers' eager attention gives NaN at padding."""
    model = tiny(family_model.config.model_type, dtype=torch.float32)
    model.set_attn_implementation("eager")
    _compare_with_plain_generate(model, "beam", [0, 1, 2])
    seen = laws.decode(model, RandomPlan(share=0.5), eos_token_id=None)
    _assert_equals_replay(model, seen, tolerance=2e-4)


def test_law_3_in_float32(tiny, family_model):
    model = tiny(family_model.config.model_type, dtype=torch.float32)
    seen = laws.decode(model, RandomPlan(share=0.5), eos_token_id=None)
    _assert_equals_replay(model, seen, tolerance=2e-4)


def _compare_with_plain_generate(model, mode, rows):
    here = laws.decode(model, FullDepth(), mode, rows=torch.tensor(rows))
    input_ids, mask = laws.prompts(3)
    options = {"max_new_tokens": laws.NEW_TOKENS, "eos_token_id": laws.END_TOKENS, **laws.MODES[mode]}
    with laws.watched(model) as (logits, _), torch.random.fork_rng():
        torch.manual_seed(0)
        plain = model.generate(input_ids=input_ids[rows], attention_mask=mask[rows], **options)
    assert torch.equal(here.output.sequences, plain)
    assert len(here.logits) == len(logits)
    got, expected = torch.stack(here.logits), torch.stack(logits)  # (passes, rows, vocabulary)
    tolerance = 1e-10 if model.dtype == torch.float64 else 1e-4  # the engine attends by other kernels
    if "num_beams" in options:
        torch.testing.assert_close(got, expected, rtol=0, atol=tolerance)
    else:  # the engine may leave out a sequence that has ended
        live = torch.cat([torch.ones(1, len(rows), dtype=torch.bool), here.output.trace.live])
        torch.testing.assert_close(got[live], expected[live], rtol=0, atol=tolerance)


def _assert_equals_replay(model, seen, tolerance):
    mask = torch.cat([laws.prompts(3)[1], torch.ones(3, laws.NEW_TOKENS, dtype=torch.long)], dim=1)
    executed = seen.output.trace.mask(laws.PROMPT_TOKENS)
    with torch.no_grad():
        expected = replay(model, input_ids=seen.output.sequences, attention_mask=mask, executed=executed)
    got = torch.stack(seen.logits, dim=1)  # (rows, new, vocabulary)
    scale = float(expected.abs().max())
    torch.testing.assert_close(got / scale, expected[:, laws.PROMPT_TOKENS - 1 : -1] / scale, rtol=0, atol=tolerance)


@pytest.mark.parametrize(("family_model", "law", "strategy", "mode"), list(cells()), ids=ids, indirect=["family_model"])
def test_laws_2_to_7(family_model, decodes, law, strategy, mode):
    law(family_model, strategy, mode, decodes)


@pytest.mark.parametrize("mode", laws.MODES)
def test_an_oracle_whose_entries_follow_the_law_obeys_law_3(family_model, decodes, mode):
    laws.law_3_replay(family_model, OracleExit(), mode, decodes)


def test_an_oracle_exits_where_the_prediction_is_that_of_the_full_model(family_model, decodes):
    """With the full model's keys and values; its exits are found anew, in one full pass over the finished text."""
    here = decodes(family_model, OracleExit("full"), eos_token_id=None).output
    full = decodes(family_model, FullDepth(), eos_token_id=None).output
    assert torch.equal(here.sequences, full.sequences)
    outputs = []
    parts = decoder_parts(family_model)
    hooks = [layer.register_forward_hook(lambda *args: outputs.append(args[-1])) for layer in parts.layers]
    mask = torch.cat([laws.prompts(3)[1], torch.ones(3, laws.NEW_TOKENS, dtype=torch.long)], dim=1)
    everything = torch.ones(*full.sequences.shape, 6, dtype=torch.bool)
    with torch.no_grad():
        replay(family_model, input_ids=full.sequences, attention_mask=mask, executed=everything)
        states = [out[0] if isinstance(out, tuple) else out for out in outputs]
        predictions = torch.stack([parts.logits(state).argmax(-1) for state in states])  # (layers, rows, length)
    for hook in hooks:
        hook.remove()
    for step, row in torch.cartesian_prod(torch.arange(laws.NEW_TOKENS - 1), torch.arange(3)).tolist():
        said = predictions[:, row, laws.PROMPT_TOKENS + step].tolist()
        assert here.trace.executed[step, row].tolist() == [i <= said.index(said[-1]) for i in range(6)]
    assert here.trace.average_layers < 6


@pytest.mark.parametrize("strategy", ALL, ids=ids)
def test_law_8_config_and_pickling(strategy):
    laws.law_8_config(strategy)


# A schedule cannot break law 9. A confidence can in principle: an earlier exit changes what later tokens attend to, and
# so how sure they are; next to the full model and to an exit after the first layer it cannot.
KNOBS = [
    [HSD(0), HSD(1, 0, 4), HSD(2, 0, 4), HSD(2, 0, 2), HSD(5, 0, 2)],
    [SkipDecode(None, None), SkipDecode(3, 6), SkipDecode(2, 4), SkipDecode(1, 2)],
    [SubLayerStrategy(a, m) for a, m in ((None, None), ([1], None), ([1, 3], None), ([1, 2, 3], [2, 4]))],
    [CALM(t) for t in (1.0, 0.9, 0.5, 0.2, 0.0)],
    [CALM(schedule="depth", slope=s) for s in (0.0, 0.05, 0.2, 1.0)],
    [CALM(t, measure="saturation") for t in (1.0, 0.8, 0.5, 0.0)],
    [CALM(t, measure="classifier", classifier=CLASSIFIER) for t in (1.0, 0.8, 0.5, 0.0)],
    [CALM(t, exit_rule="min") for t in (1.0, 0.3, 0.0)],
    [DeeBERT(t) for t in (1.0, 0.9, 0.5, 0.0)],
    [PABEE(p) for p in (None, 3, 2, 1)],
    [LearnedExit(ROUTER, t) for t in (1.0, 0.8, 0.5, 0.0)],
    [Compose(HSD(1, 0, 4), CALM(t)) for t in (1.0, 0.9, 0.5, 0.0)],
]


@pytest.mark.parametrize(
    ("family_model", "settings"),
    by_family(KNOBS),
    ids=lambda value: ids(value[-1] if isinstance(value, list) else value),
    indirect=["family_model"],
)
def test_law_9_more_skipping_never_runs_more_layers(family_model, settings):
    laws.law_9_knob(family_model, settings)


SCHEDULED = [strategy for strategy in ALL if isinstance(strategy, ScheduledStrategy)]


@pytest.mark.parametrize(("family_model", "strategy"), by_family(SCHEDULED), ids=ids, indirect=["family_model"])
def test_scheduled_strategies_equal_a_reference_without_cache(family_model, decodes, strategy):
    input_ids, mask = laws.prompts(3)
    here = decodes(family_model, strategy, eos_token_id=None)
    tokens, logits = slow.greedy_by_schedule(family_model, input_ids, mask, strategy, laws.NEW_TOKENS)
    assert torch.equal(here.output.sequences, tokens)
    torch.testing.assert_close(torch.stack(here.logits), torch.stack(logits), rtol=0, atol=1e-9)


CONFIDENT = [*SETTINGS[CALM], *SETTINGS[DeeBERT], *SETTINGS[PABEE], *SETTINGS[LearnedExit]]


@pytest.mark.parametrize(("family_model", "strategy"), by_family(CONFIDENT), ids=ids, indirect=["family_model"])
def test_confidence_strategies_equal_a_reference_without_cache(family_model, decodes, strategy):
    _compare_with_slow_confidence(family_model, decodes, strategy, strategy)


@pytest.mark.parametrize(("family_model", "strategy"), by_family(SETTINGS[Compose]), ids=ids, indirect=["family_model"])
def test_composed_strategies_equal_a_reference_without_cache(family_model, decodes, strategy):
    _compare_with_slow_confidence(family_model, decodes, strategy, strategy.confidence, strategy.schedule)


def _compare_with_slow_confidence(model, decodes, strategy, confidence, schedule=None):
    input_ids, mask = laws.prompts(3)
    here = decodes(model, strategy, eos_token_id=None)
    leaves = slow.leaves_of(confidence, decoder_parts(model), laws.NEW_TOKENS)
    tokens, logits, executed = slow.greedy_by_confidence(
        model, input_ids, mask, laws.NEW_TOKENS, leaves, schedule, late=confidence.late_exit
    )
    assert torch.equal(here.output.sequences, tokens)
    torch.testing.assert_close(torch.stack(here.logits), torch.stack(logits), rtol=0, atol=1e-9)
    assert torch.equal(here.output.trace.mask(laws.PROMPT_TOKENS)[:, :-1], executed)
    steps = None if schedule is None else schedule.scheduled_layers(6, laws.NEW_TOKENS)
    bound = laws.NEW_TOKENS - 1 if steps is None else sum(map(len, steps)) / 6
    assert int(here.output.trace.executed.sum()) < 3 * 6 * bound  # some row did exit
