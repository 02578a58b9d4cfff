"""Encoder-decoder models: T5, mT5, BART, mBART, Marian, Pegasus, T5Gemma. The law holds for the decoder."""

import copy
import math
from types import SimpleNamespace
from unittest import mock

import pytest
import torch

from hsdlab import (
    CALM,
    HSD,
    FullDepth,
    OracleExit,
    StaticDepth,
    SubLayerStrategy,
    UserError,
    Verified,
    generate,
    replay,
)
from hsdlab import testing as laws
from hsdlab.decoding import families, layer_parts
from hsdlab.decoding.cost import decode_bytes, decode_cost, decode_flops, encoder_flops, prompt_flops
from hsdlab.decoding.families import UnsupportedModelError, decoder_parts
from hsdlab.decoding.forced import ForcedTexts, layer_schedule
from hsdlab.reporting.comparison import _encoder_note
from hsdlab.testing.expect import expect_close
from tests.decoding.counted import counted
from tests.reference import slow
from tests.strategies_for_tests import ChangingPrompt, RandomParts, RandomPlan

LAYERS = 6
CELLS = [
    (laws.law_3_replay, RandomPlan(share=0.5), "greedy"),
    (laws.law_3_replay, RandomPlan(share=0.5), "beam"),
    (laws.law_3_replay, CALM(0.5), "sampling"),
    (laws.law_3_replay, ChangingPrompt(), "greedy"),
    (laws.law_4_trace, RandomPlan(share=0.5), "greedy"),
    (laws.law_4_trace, RandomPlan(share=0.5), "beam"),
    (laws.law_5_restored, HSD(2, 0, 4), "greedy"),
    (laws.law_6_no_state, CALM(0.4, measure="saturation", probe_layers=2), "greedy"),
    (laws.law_7_rows, CALM(0.4, probe_layers=2, shortlist=8), "greedy"),
    (laws.law_7_rows, HSD(2, 0, 4), "beam"),
]


@pytest.fixture(
    scope="module", params=[pytest.param(f, marks=pytest.mark.xdist_group(f)) for f in laws.ENCODER_DECODERS]
)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def model(family):
    return laws.tiny_model(family)


@pytest.fixture(scope="module")
def remembered(family):
    return laws.RememberedDecodes()


def test_the_family_is_known_and_each_layer_matters(model):
    parts = decoder_parts(model)
    assert parts.proven
    assert parts.encoder is model.get_encoder()
    assert parts.num_layers == LAYERS
    executed = torch.ones(3, 5, LAYERS, dtype=torch.bool)
    full = _replay(model, executed)
    for layer in range(LAYERS):
        without = executed.clone()
        without[:, -1, layer] = False
        assert (full[:, -1] - _replay(model, without)[:, -1]).abs().max() > 0.05


def _decoder_ids(tokens=5):
    return torch.randint(7, laws.VOCABULARY, (3, tokens), generator=torch.Generator().manual_seed(1))


def _replay(model, executed):
    ids, mask = laws.prompts_for(model)
    decoder_ids = _decoder_ids(executed.shape[1])
    with torch.no_grad():
        return replay(model, input_ids=ids, attention_mask=mask, decoder_input_ids=decoder_ids, executed=executed)


def test_replay_with_all_layers_is_a_forward_pass(model):
    ids, mask = laws.prompts_for(model)
    decoder_ids = _decoder_ids()
    with torch.no_grad():
        plain = model(input_ids=ids, attention_mask=mask, decoder_input_ids=decoder_ids).logits
    expect_close(_replay(model, torch.ones(3, 5, LAYERS, dtype=torch.bool)), plain, "replay differs from the model")


def test_replay_equals_a_reference_without_cache(model):
    """Hooks undo each layer where it does not run; the position bias of T5's first block goes on nonetheless."""
    ids, mask = laws.prompts_for(model)
    decoder_ids = _decoder_ids()
    executed = torch.rand(3, 5, LAYERS, generator=torch.Generator().manual_seed(0)) < 0.5
    with torch.no_grad():
        expected = slow.masked_logits(model, ids, mask, executed, decoder_input_ids=decoder_ids)
    expect_close(_replay(model, executed), expected, "the logits of replay differ from the reference's")


@pytest.mark.parametrize("mode", laws.MODES)
def test_law_1_full_depth_equals_plain_generate(model, remembered, mode):
    here = remembered(model, FullDepth(), mode)
    ids, mask = laws.prompts_for(model)
    options = {"max_new_tokens": laws.NEW_TOKENS, "eos_token_id": laws.END_TOKENS, **laws.MODES[mode]}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        plain = model.generate(input_ids=ids, attention_mask=mask, **options)
    assert torch.equal(here.output.sequences, plain)
    assert here.output.trace.prompt_length == 1


PARTS = [(laws.law_3_replay, "greedy"), (laws.law_3_replay, "beam"), (laws.law_4_trace, "greedy")]


@pytest.mark.parametrize("family", ["t5", "mt5", "mbart", "pegasus", "t5gemma"], indirect=True)
@pytest.mark.parametrize(("law", "mode"), PARTS)
def test_attention_and_mlp_apart(model, remembered, law, mode):
    """Cross-attention runs and is skipped with self-attention."""
    law(model, RandomParts(share=0.5), mode, remembered)


@pytest.mark.parametrize(
    "draft", [HSD(2, 0, 4), pytest.param(CALM(0.5), marks=pytest.mark.slow), RandomPlan(share=0.5)], ids=repr
)
def test_verified_drafts_change_no_token(model, remembered, draft):
    """Rows accept different numbers of tokens, so that they are at different positions."""
    ids, mask = laws.prompts_for(model)
    call = {"input_ids": ids, "attention_mask": mask, "max_new_tokens": 12, "eos_token_id": laws.END_TOKENS}
    full = generate(model, strategy=FullDepth(), output_scores=True, **call)
    got = generate(model, strategy=Verified(draft, 3), output_scores=True, **call)
    assert got.sequences.tolist() == full.sequences.tolist()
    live = torch.cat([torch.ones(1, 3, dtype=torch.bool), full.trace.live])
    for step, (here, there) in enumerate(zip(got.scores, full.scores, strict=True)):
        expect_close(here[live[step]], there[live[step]], f"scores of pass {step}", tolerance=1e-4)


def test_verified_sampling_and_draft_vocabularies(model):
    ids, mask = laws.prompts_for(model)
    call = {"input_ids": ids, "attention_mask": mask, "max_new_tokens": 8, "eos_token_id": None}
    full = generate(model, strategy=FullDepth(), **call)
    some = Verified(StaticDepth(4, keep="bottom"), 3, draft_vocabulary=20)
    assert generate(model, strategy=some, **call).sequences.tolist() == full.sequences.tolist()
    cold = {"do_sample": True, "temperature": 1e-3}
    assert (
        generate(model, strategy=Verified(HSD(2, 0, 4)), **call, **cold).sequences.tolist() == full.sequences.tolist()
    )


@pytest.mark.parametrize(("law", "strategy", "mode"), CELLS, ids=lambda value: getattr(value, "__name__", repr(value)))
def test_laws(model, remembered, law, strategy, mode):
    law(model, strategy, mode, remembered)


COSTS = [
    (RandomPlan(share=0.5), {}),
    pytest.param(FullDepth(), {"num_beams": 3}, marks=pytest.mark.slow),
    pytest.param(RandomPlan(share=0.5), {"num_beams": 3}, marks=pytest.mark.slow),
    pytest.param(HSD(2, 0, 4), {}, marks=pytest.mark.slow),
    pytest.param(Verified(HSD(2, 0, 4), 3), {}, marks=pytest.mark.slow),
    pytest.param(CALM(0.5), {"num_beams": 3}, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("strategy", "way"), COSTS, ids=str)
def test_the_cost_is_what_torch_counts(model, strategy, way):
    rows = 1 if isinstance(strategy, Verified) else 2  # it pads the rows of a batch, which counts as nothing
    ids, mask = laws.prompts_for(model, rows)
    call = {"input_ids": ids, "attention_mask": mask, **way}
    output, both = counted(model, strategy, max_new_tokens=9, **call)
    _, prompt = counted(model, FullDepth(), max_new_tokens=1, **call)
    trace, steps = output.trace, both - prompt
    assert encoder_flops(model, trace) + prompt_flops(model, trace) == pytest.approx(prompt.flops, rel=0.01)
    assert decode_flops(model, trace) == pytest.approx(steps.flops, rel=0.01)
    assert decode_bytes(model, trace) == pytest.approx(steps.bytes_read, rel=0.02)
    cost = decode_cost(model, output)
    assert cost.encoder_flops == encoder_flops(model, trace)
    assert 0 < cost.encoder_s < cost.prompt_s
    assert cost.figures()["encoder_ms"] == pytest.approx(1000 * cost.encoder_s)


def test_the_encoder_runs_once_and_cross_attention_makes_its_keys_once(model):
    parts, calls = decoder_parts(model), []
    keys = [families.cross_attention(layer) for layer in parts.layers]
    keys = [getattr(each, "k", None) or each.k_proj for each in keys]
    watched = [parts.encoder, *keys]
    handles = [each.register_forward_hook(lambda module, *_: calls.append(watched.index(module))) for each in watched]
    try:
        laws.decode(model, RandomPlan(share=0.5), "beam", eos_token_id=None)
    finally:
        for handle in handles:
            handle.remove()
    assert sorted(calls) == list(range(LAYERS + 1))


def test_rows_that_end_are_left_out(model):
    """What is left of cross-attention is that of the other rows."""
    whole = laws.decode(model, HSD(2, 0, 4), eos_token_id=None).output.sequences
    ends = whole[0, 2].item()
    got = laws.decode(model, HSD(2, 0, 4), eos_token_id=[ends]).output
    for row in range(3):
        length = int(got.trace.live[:, row].sum()) + 2
        assert got.sequences[row, :length].tolist() == whole[row, :length].tolist()


def test_a_decoder_prompt_of_several_tokens(model):
    ids, mask = laws.prompts_for(model)
    given = {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": _decoder_ids(3), "max_new_tokens": 6}
    plain = model.generate(**given, do_sample=False)
    full = generate(model, strategy=FullDepth(), **given)
    assert full.sequences.tolist() == plain.tolist()
    assert full.trace.prompt_length == plain.shape[1] - 6
    output = generate(model, strategy=ChangingPrompt(), output_scores=True, **given)
    start = output.trace.prompt_length
    replayed = laws.replayed(model, output)[:, start - 1 : -1]
    expect_close(torch.stack(output.scores, dim=1), replayed.float(), "scores differ from replay's", tolerance=1e-4)


class RowsAndPrompt(RandomPlan):
    """Each row runs its own layers, and each token of the prompt too."""

    def scheduled_prompt(self, prompt_length, num_layers):
        return [[i for i in range(num_layers) if (i + position) % 3] for position in range(prompt_length)]


def test_samples_of_a_source_read_its_encoder_after_a_prompt_of_skipped_layers(model):
    """The prompt is computed once for each source; its rows come apart in the decode steps."""
    ids, mask = laws.prompts_for(model)
    call = {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": _decoder_ids(4), "max_new_tokens": 6}
    more = {"num_return_sequences": 3, "do_sample": True, "top_k": 0, "eos_token_id": None, "output_scores": True}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        output = generate(model, strategy=RowsAndPrompt(share=0.3), **call, **more)
    start = output.trace.prompt_length
    with torch.no_grad():
        replayed = replay(
            model,
            input_ids=ids.repeat_interleave(3, dim=0),
            attention_mask=mask.repeat_interleave(3, dim=0),
            decoder_input_ids=output.sequences,
            executed=output.trace.mask(start),
        )[:, start - 1 : -1]
    expect_close(torch.stack(output.scores, dim=1), replayed.float(), "scores differ from replay's", tolerance=1e-4)


def test_the_context_of_source_and_text(model):
    ids = torch.full((1, 65), 7)
    if model.config.model_type in ("t5", "mt5"):
        pytest.skip("T5 has relative positions and no context length")
    with pytest.raises(UserError, match="A source of 65 tokens exceeds this model's context of 64"):
        generate(model, input_ids=ids, strategy=HSD(), max_new_tokens=2)
    with pytest.raises(UserError, match="A prompt of 1 tokens and max_new_tokens=64 exceed"):
        generate(model, input_ids=ids[:, :4], strategy=HSD(), max_new_tokens=64)


def test_what_is_refused(model):
    ids, mask = laws.prompts_for(model)
    call = {"input_ids": ids, "attention_mask": mask, "max_new_tokens": 3}
    if model.config.model_type in ("bart", "marian"):
        with pytest.raises(UnsupportedModelError, match="cannot be skipped apart"):
            generate(model, strategy=Verified(RandomParts(share=0.5)), **call)
        with pytest.raises(UnsupportedModelError, match="cannot be skipped apart"):
            generate(model, strategy=SubLayerStrategy([1], [2]), **call)
    with pytest.raises(UserError, match="compile=True"):
        generate(model, strategy=HSD(), compile=True, **call)
    padded = {"decoder_input_ids": _decoder_ids(2), "decoder_attention_mask": torch.tensor([[0, 1]] * 3)}
    with pytest.raises(UserError, match="decoder_attention_mask: padding is not supported"):
        generate(model, strategy=HSD(), **padded, **call)
    with pytest.raises(UserError, match="encoder_outputs: give the source as input_ids"):
        generate(model, strategy=HSD(), encoder_outputs=(torch.zeros(3, 5, 32),), **call)
    without_start = {"decoder_start_token_id": None, "bos_token_id": None}
    config = copy.deepcopy(model.generation_config)
    config.update(**without_start)
    with (
        mock.patch.object(model, "generation_config", config),
        pytest.raises(UserError, match="decoder_start_token_id: n"),
    ):
        generate(model, strategy=HSD(), **call)
    executed = torch.ones(3, 5, LAYERS, dtype=torch.bool)
    with pytest.raises(UserError, match="This model has an encoder; give it"):
        replay(model, input_ids=ids, attention_mask=mask, executed=executed)
    with pytest.raises(UserError, match="This model has no encoder; leave it out"):
        replay(laws.tiny_model(), input_ids=ids, decoder_input_ids=ids, executed=executed)


def test_gradients_of_replay_reach_the_encoder():
    model = laws.tiny_model("t5")
    ids, mask = laws.prompts_for(model)
    executed = torch.rand(3, 5, LAYERS, generator=torch.Generator().manual_seed(0)) < 0.5
    executed[:, :, 3] = False
    replay(
        model, input_ids=ids, attention_mask=mask, decoder_input_ids=_decoder_ids(), executed=executed
    ).square().mean().backward()
    assert all(weight.grad is not None for weight in model.encoder.block.parameters())
    assert all(weight.grad is None for weight in model.decoder.block[3].parameters())


def test_an_oracle_on_an_encoder_decoder(model):
    output = laws.decode(model, OracleExit("full")).output
    full = laws.decode(model, FullDepth()).output
    assert output.sequences.tolist() == full.sequences.tolist()
    assert output.trace.average_layers <= LAYERS


def test_a_decoder_deeper_than_its_encoder():
    """transformers' own generate fails there in 5.23: its cache has as many layers as the encoder."""
    model = laws.tiny_model("t5", num_layers=6, num_decoder_layers=6)
    config = copy.deepcopy(model.config)
    config.num_layers = 2
    deeper = type(model)(config).double().eval()
    assert decoder_parts(deeper).num_layers == LAYERS
    laws.law_3_replay(deeper, RandomPlan(share=0.5), "greedy")


@pytest.mark.parametrize("model_type", ["umt5", "m2m_100", pytest.param("blenderbot", marks=pytest.mark.slow)])
def test_a_family_that_is_not_listed_is_found_and_checked(model_type):
    model = laws.tiny_model(
        model_type,
        num_layers=LAYERS,
        **laws.ENCODER_DECODERS["t5" if model_type == "umt5" else "mbart"].options,
        **dict.fromkeys(("encoder_layers", "decoder_layers", "num_decoder_layers"), LAYERS),
    )
    assert not decoder_parts(model).proven
    laws.decode(model, CALM(0.5))  # the first decode is checked, which runs more passes
    laws.law_3_replay(model, CALM(0.5), "greedy")
    laws.law_3_replay(model, RandomPlan(share=0.5), "beam")


def test_forced_texts_score_the_decode_steps(model):
    ids, mask = laws.prompts_for(model)
    output = generate(model, input_ids=ids, attention_mask=mask, strategy=HSD(2, 0, 4), max_new_tokens=6)
    text = output.sequences
    new = torch.ones_like(text, dtype=torch.bool)
    new[:, 0] = False
    batch = {"input_ids": text, "attention_mask": torch.ones_like(text), "target_mask": new}
    with torch.no_grad():
        texts = ForcedTexts(model, {**batch, "source_ids": ids, "source_mask": mask})
        schedule = layer_schedule(HSD(2, 0, 4), LAYERS, 6)
        agreed = texts.agrees(texts.scheduled_logits(schedule))
    assert [each.tolist() for each in agreed] == [[True] * 5] * 3


def test_a_draft_that_skips_parts_has_its_model_checked():
    """A new model, of which no decode in parts came before."""
    model = laws.tiny_model("t5")
    ids, mask = laws.prompts_for(model)
    call = {"input_ids": ids, "attention_mask": mask, "max_new_tokens": 6, "eos_token_id": None}
    with mock.patch.dict(layer_parts._further_outputs, clear=True):
        got = generate(model, strategy=Verified(RandomParts(share=0.5)), **call)
    assert got.sequences.tolist() == generate(model, strategy=FullDepth(), **call).sequences.tolist()


def test_a_table_says_which_figures_leave_the_encoder_out():
    figures = {"encoder_ms": 4.0}
    rows = [SimpleNamespace(figure=lambda name: figures.get(name, math.nan)) for _ in range(2)]
    (note,) = _encoder_note(rows)
    assert note.startswith("The encoder ran 4 ms a batch")
    figures.clear()
    assert _encoder_note(rows) == []
