"""The families of ``MORE_FAMILIES``: a few cells of the law suite each, and what a family may do otherwise than others.

The seven of ``TINY_FAMILIES`` are held to every law with every strategy (tests/test_laws.py). A further family shares
most of its code with them, so that strategies of each kind are enough: a schedule that shrinks, one with late keys and
values, beams, a prompt schedule, intermediate predictions, attention and MLP apart, drafts.
"""

import pytest
import torch

from benchmarks import families
from hsdlab import CALM, HSD, FullDepth, OracleExit, UserError, Verified, replay
from hsdlab import testing as laws
from hsdlab.decoding.cost import decode_cost
from hsdlab.decoding.families import FAMILIES, UnsupportedModelError, decoder_parts
from hsdlab.testing.expect import expect_close
from tests.decoding.test_passes import Text
from tests.markdown_tables import unpadded
from tests.reference import slow
from tests.strategies_for_tests import ChangingPrompt, RandomParts, RandomPlan

LAYERS, NEW = 6, laws.NEW_TOKENS
RECURRENT = ["falcon_h1", "granite_hybrid", "jamba", "lfm2", "mamba", "mamba2", "qwen3_next"]
NO_DRAFTS = {"bloom": r"\(ALiBi\) from the padding", "falcon_alibi": r"\(ALiBi\) from the padding"} | dict.fromkeys(
    RECURRENT, "has recurrent layers"
)
NO_DRAFTS["gemma4_shared"] = "read another layer's keys and values"
REFUSED = {
    ("falcon_h1", RandomParts): "a recurrent part beside attention",
    ("gemma4_shared", ChangingPrompt): "leave the prompt at full depth",
    ("gemma4_shared", RandomParts): "change the hidden state also without both",
    ("mamba", RandomParts): "no MLP",
    ("mamba2", RandomParts): "no MLP",
}
OFTEN = {"lfm2"}  # of the recurrent ones; tests/decoding/test_recurrent.py has a few of the others
CELLS = [
    (laws.law_3_replay, RandomPlan(share=0.5), "greedy"),
    (laws.law_3_replay, RandomPlan(share=0.5), "beam"),
    (laws.law_3_replay, ChangingPrompt(), "greedy"),
    (laws.law_3_replay, RandomParts(share=0.5), "greedy"),
    (laws.law_4_trace, RandomPlan(share=0.5), "greedy"),
    (laws.law_5_restored, HSD(2, 0, 4), "greedy"),
    pytest.param(laws.law_7_rows, CALM(0.4, probe_layers=2, shortlist=8), "greedy", marks=pytest.mark.slow),
]


def _marks(family):
    slow = [pytest.mark.slow] if family in RECURRENT and family not in OFTEN else []
    return [pytest.mark.xdist_group(family), *slow]


@pytest.fixture(scope="module", params=[pytest.param(f, marks=_marks(f)) for f in laws.MORE_FAMILIES])
def more_family(request):
    return request.param


@pytest.fixture(scope="module")
def model(more_family):
    return laws.tiny_model(more_family)


@pytest.fixture(scope="module")
def remembered(more_family):
    return laws.RememberedDecodes()


def test_every_family_is_in_the_suite():
    more = {**laws.MORE_FAMILIES, **laws.ENCODER_DECODERS}  # tests/test_encoder_decoders.py
    tested = {*laws.TINY_FAMILIES, *(family.model_type for family in more.values())}
    assert tested - {"t5gemma"} | {"t5_gemma_module"} == set(FAMILIES)  # the name of its decoder
    assert {name for name, family in FAMILIES.items() if family.compiled} == set(laws.TINY_FAMILIES)


def test_the_page_has_a_line_for_each_family():
    page = families.PAGE.read_text(encoding="utf-8").partition("<!-- families:end -->")[0]
    lines = [line for line in unpadded(page).split("\n") if line.startswith("| ")]
    begin = [f"| {each.models} | `{each.model_type}` | {each.adds} | " for each in families.FAMILIES.values()]
    assert len(lines) - 2 == len(begin), "run python -m benchmarks.families"
    for line, expected, name in zip(lines[2:], begin, families.FAMILIES, strict=True):
        assert line.startswith(expected), "run python -m benchmarks.families"
        *_, dtype, generated, replayed, drafts = line.strip("| ").split(" | ")
        assert max(float(generated), float(replayed)) < {"float64": 1e-12, "float32": 1e-4}[dtype]
        assert (drafts == "refused") == (name in NO_DRAFTS)


def test_the_family_is_known_and_each_layer_matters(model):
    assert decoder_parts(model).proven
    input_ids, mask = laws.prompts(3)
    executed = torch.ones(3, laws.PROMPT_TOKENS, LAYERS, dtype=torch.bool)
    with torch.no_grad():
        full = replay(model, input_ids=input_ids, attention_mask=mask, executed=executed)
        for layer in range(LAYERS):
            without = executed.clone()
            without[:, -1, layer] = False
            dropped = replay(model, input_ids=input_ids, attention_mask=mask, executed=without)
            assert (full[:, -1] - dropped[:, -1]).abs().max() > 0.05


def test_replay_equals_a_reference_without_cache(model):
    """Hooks undo each layer where it does not run."""
    input_ids, mask = laws.prompts(3)
    input_ids, mask = torch.cat([input_ids, input_ids.flip(1)], dim=1), torch.cat([mask, torch.ones_like(mask)], dim=1)
    executed = torch.rand(*input_ids.shape, LAYERS, generator=torch.Generator().manual_seed(0)) < 0.5
    with torch.no_grad():
        got = replay(model, input_ids=input_ids, attention_mask=mask, executed=executed)
        expected = slow.masked_logits(model, input_ids, mask, executed)
    expect_close(got[mask.bool()], expected[mask.bool()], "the logits of replay differ from the reference's")


@pytest.mark.parametrize("mode", laws.MODES)
def test_law_1_full_depth_equals_plain_generate(model, remembered, mode):
    here = remembered(model, FullDepth(), mode)
    input_ids, mask = laws.prompts(3)
    options = {"max_new_tokens": NEW, "eos_token_id": laws.END_TOKENS, **laws.MODES[mode]}
    with laws.watched(model) as (logits, _), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        plain = model.generate(input_ids=input_ids, attention_mask=mask, **options)
    assert torch.equal(here.output.sequences, plain)
    live = torch.cat([torch.ones(1, 3, dtype=torch.bool), here.output.trace.live])
    for step, (got, expected) in enumerate(zip(here.logits, logits, strict=True)):
        rows = slice(None) if mode == "beam" else live[step]  # the engine may leave out a sequence that has ended
        expect_close(got[rows], expected[rows], f"the logits of pass {step} differ")


@pytest.mark.parametrize(("law", "strategy", "mode"), CELLS, ids=lambda value: getattr(value, "__name__", repr(value)))
def test_laws(more_family, model, remembered, law, strategy, mode):
    if (more_family, type(strategy)) in REFUSED:
        with pytest.raises(UserError, match=REFUSED[more_family, type(strategy)]):
            law(model, strategy, mode, remembered)
        return
    law(model, strategy, mode, remembered)


@pytest.mark.parametrize("family", ["gemma3", "ministral"])
def test_an_oracle_gives_each_layer_its_own_rotation_and_window(family, tiny):
    laws.law_3_replay(tiny(family), OracleExit(), "greedy", laws.RememberedDecodes())


def test_an_early_exit_equals_a_reference_without_cache(model, remembered):
    strategy = CALM(threshold=0.4, probe_layers=2, shortlist=8)
    input_ids, mask = laws.prompts(3)
    here = remembered(model, strategy, eos_token_id=None)
    leaves = slow.leaves_of(strategy, decoder_parts(model), NEW)
    tokens, logits, executed = slow.greedy_by_confidence(model, input_ids, mask, NEW, leaves, None, late=False)
    assert torch.equal(here.output.sequences, tokens)
    assert torch.equal(here.output.trace.mask(laws.PROMPT_TOKENS)[:, :-1], executed)
    expect_close(torch.stack(here.logits), torch.stack(logits), "the logits differ from the reference's")


def test_the_last_intermediate_prediction_is_the_models(model):
    """For some tokens of the vocabulary as for all."""
    parts, outputs = decoder_parts(model), []
    hook = parts.layers[-1].register_forward_hook(lambda *args: outputs.append(args[-1]))
    with torch.no_grad():
        expected = model(laws.prompts(1)[0]).logits[0]
        hook.remove()
        hidden = (outputs[0][0] if isinstance(outputs[0], tuple) else outputs[0])[0]
        expect_close(parts.logits(hidden), expected, "the logits of norm and head")
        tokens = torch.arange(3).expand(len(hidden), -1)
        expect_close(parts.token_logits(hidden, tokens), expected[:, :3], "the logits of candidate tokens")


def test_verified_writes_the_text_of_full_depth(more_family, model, remembered):
    strategy = Verified(HSD(2, 0, 4), 3, draft_vocabulary=40)
    if more_family in NO_DRAFTS:
        with pytest.raises(UnsupportedModelError, match=NO_DRAFTS[more_family]):
            laws.decode(model, strategy)
        return
    here = remembered(model, strategy, eos_token_id=None).output
    full = remembered(model, FullDepth(), eos_token_id=None).output
    assert torch.equal(here.sequences, full.sequences)


def test_passes_over_several_tokens_equal_replay(more_family, model):
    if more_family in NO_DRAFTS:
        pytest.skip("refused, as the test before this one shows")
    text = Text(model)
    text.run(4, counts=[4, 1, 2])
    text.run(3, share=0.3)
    text.forget([4, 2, 1])
    text.run(2, share=1.0)
    text.run(3, counts=[1, 3, 2])
    text.check()


def test_replay_trains(more_family):
    """The gradients of all parameters are finite, and those of most layers are not 0."""
    trained = laws.tiny_model(more_family)
    input_ids, mask = laws.prompts(3)
    executed = torch.ones(3, laws.PROMPT_TOKENS, LAYERS, dtype=torch.bool)
    executed[:, -2:, 1:4] = False
    replay(trained, input_ids=input_ids, attention_mask=mask, executed=executed)[mask.bool()].logsumexp(
        -1
    ).sum().backward()
    grads = [weight.grad for layer in decoder_parts(trained).layers for weight in layer.parameters()]
    assert all(grad is None or bool(grad.isfinite().all()) for grad in grads)
    assert sum(grad is not None and bool(grad.any()) for grad in grads) > len(grads) / 2


def test_the_cost_of_a_decode_is_counted(model, remembered):
    cost = decode_cost(model, remembered(model, RandomPlan(share=0.5), eos_token_id=None).output)
    assert cost.flops > 0
    assert cost.bytes_read > 0
