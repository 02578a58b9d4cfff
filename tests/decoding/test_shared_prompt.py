"""A prompt is computed, held and read once for all rows of its source, and attention over both parts is exact."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from hsdlab import CALM, FullDepth, generate
from hsdlab import testing as laws
from hsdlab.decoding import shared_prompt
from hsdlab.decoding.cache import SkipCache
from hsdlab.decoding.shared_prompt import StepRows, TwoParts
from hsdlab.errors import RunError
from hsdlab.testing import tiny_model

SOURCES, COPIES, HEADS, PROMPT, NEW, SIZE = 2, 3, 2, 5, 4, 8
ROWS, LENGTH = SOURCES * COPIES, PROMPT + NEW


@pytest.fixture
def parts():
    """Keys and values of prompt and new tokens, [.., heads, tokens, size]."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(SOURCES, HEADS, PROMPT, SIZE), (ROWS, HEADS, NEW, SIZE)] * 2
    return [torch.randn(shape, dtype=torch.float64, generator=generator) for shape in shapes]


@pytest.fixture
def joins(monkeypatch):
    """How often parts were joined."""
    joined = []
    own = TwoParts.joined
    monkeypatch.setattr(TwoParts, "joined", lambda self: joined.append(1) or own(self))
    return joined


def padding():
    """The first two tokens of the second source are padding, [rows, 1, 1, length]."""
    mask = torch.ones(ROWS, 1, 1, LENGTH, dtype=torch.bool)
    mask[COPIES:, :, :, :2] = False
    return mask


def attend(parts, mask, called, query_shape, **options):
    """The output, and that of joined keys and values."""
    prompt_keys, new_keys, prompt_values, new_values = parts
    step = StepRows(COPIES, PROMPT)
    called_mask = mask if mask is None or called is None else mask[called]
    step.begin_layer(mask, called_mask, called)
    query = torch.randn(query_shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    keys, values = TwoParts(prompt_keys, new_keys, step), TwoParts(prompt_values, new_values, step)
    got = scaled_dot_product_attention(query, keys, values, attn_mask=called_mask, **options)
    rows = torch.arange(ROWS) if called is None else called
    whole = [
        torch.cat([prompt.repeat_interleave(COPIES, 0), new], dim=2)[rows]
        for prompt, new in ((prompt_keys, new_keys), (prompt_values, new_values))
    ]
    return got, scaled_dot_product_attention(query, *whole, attn_mask=called_mask, **options)


@pytest.mark.parametrize("called", [None, torch.tensor([1, 3, 4])], ids=["all", "some"])
@pytest.mark.parametrize("mask", [None, padding()], ids=["whole", "padded"])
@pytest.mark.parametrize(
    ("heads", "tokens", "options"),
    [(HEADS, 1, {}), (HEADS, 3, {"scale": 0.7}), (3 * HEADS, 1, {"enable_gqa": True})],
)
def test_attention_over_two_parts_is_attention_over_both(parts, joins, called, mask, heads, tokens, options):
    rows = ROWS if called is None else len(called)
    got, expected = attend(parts, mask, called, (rows, heads, tokens, SIZE), **options)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    assert got.shape == expected.shape
    assert not joins


def new_token_ruled_out():
    mask = padding()
    mask[0, :, :, -1] = False
    return mask


@pytest.mark.parametrize(
    "mask",
    [padding().double(), new_token_ruled_out(), padding().expand(-1, HEADS, -1, -1)],
    ids=["added", "new", "heads"],
)
def test_other_masks_get_joined_keys(parts, joins, mask):
    got, expected = attend(parts, mask, None, (ROWS, HEADS, 1, SIZE))
    assert torch.equal(got, expected)
    assert joins


def test_other_functions_get_joined_keys(parts):
    prompt, new, _, _ = parts
    step = StepRows(COPIES, PROMPT)
    keys = TwoParts(prompt, new, step)
    assert keys.shape == (ROWS, HEADS, LENGTH, SIZE)
    assert torch.equal(keys.transpose(2, 3)[4], torch.cat([prompt[1], new[4]], dim=1).transpose(1, 2))
    with pytest.raises(RuntimeError, match="held in two parts"), torch._C.DisableTorchFunctionSubclass():
        keys + 1


@pytest.mark.parametrize("strategy", [FullDepth(), CALM(0.5)], ids=repr)
def test_beams_share_the_prompt(family_model, joins, monkeypatch, strategy):
    served = []
    own = shared_prompt._attention
    monkeypatch.setattr(shared_prompt, "_attention", lambda *a, **k: served.append(1) or own(*a, **k))
    seen = laws.decode(family_model, strategy, "beam", eos_token_id=None)
    assert seen.passes.tokens_run[0] == [3 * laws.PROMPT_TOKENS] * 6  # not of 12 rows
    assert served
    assert not joins


def test_a_prompts_keys_and_values_are_held_once(tiny):
    input_ids, mask = laws.prompts(3)
    call = {"input_ids": input_ids, "attention_mask": mask, "max_new_tokens": 6, "eos_token_id": None}
    output = generate(tiny(), strategy=FullDepth(), num_beams=4, **call)
    # llama: 2 key/value heads of 8 in float64, keys and values; 6 layers, 5 tokens of 3 prompts and of 12 beams
    assert output.cache_bytes == 6 * (3 * 5 + 12 * 5) * 2 * 2 * 8 * 8
    eager = tiny_model(dtype=torch.float32)
    eager.set_attn_implementation("eager")
    assert generate(eager, strategy=FullDepth(), num_beams=4, **call).cache_bytes == 6 * 12 * 10 * 2 * 2 * 8 * 4


def test_several_samples_are_those_of_plain_generate(family_model):
    input_ids, mask = laws.prompts(3)
    call = {"max_new_tokens": 8, "eos_token_id": None, "do_sample": True, "num_return_sequences": 3}
    torch.manual_seed(0)
    plain = family_model.generate(input_ids, attention_mask=mask, **call)
    torch.manual_seed(0)
    output = generate(family_model, input_ids=input_ids, attention_mask=mask, strategy=FullDepth(), **call)
    assert torch.equal(output.sequences, plain)


def test_hidden_states_that_are_asked_for_have_all_rows(tiny):
    input_ids, mask = laws.prompts(3)
    call = {"attention_mask": mask, "max_new_tokens": 3, "num_beams": 2, "eos_token_id": None}
    asked = {"output_hidden_states": True, "return_dict_in_generate": True}
    with FullDepth().applied_to(tiny()):
        raw = tiny().generate(input_ids, **call, **asked)
    assert {state.shape[0] for state in raw.hidden_states[0]} == {6}


def test_a_beam_that_changes_its_prompt_is_an_error(tiny, monkeypatch):
    own = SkipCache.reorder_cache
    monkeypatch.setattr(SkipCache, "reorder_cache", lambda self, rows: own(self, rows.flip(0)))
    input_ids, mask = laws.prompts(3)
    with pytest.raises(RunError, match="A beam moved to the rows of another prompt"):
        generate(tiny(), input_ids=input_ids, attention_mask=mask, strategy=FullDepth(), num_beams=2, max_new_tokens=4)


@pytest.mark.parametrize("sources", [1, 3])
def test_short_prompts_are_copied_and_long_ones_held_apart(tiny, monkeypatch, sources):
    ids = torch.randint(7, 60, (sources, 12), generator=torch.Generator().manual_seed(0))
    call = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "max_new_tokens": 6, "num_beams": 2}
    monkeypatch.setattr(shared_prompt, "FEWEST_TOKENS", 12 * sources)
    apart = generate(tiny(), strategy=FullDepth(), **call)
    monkeypatch.setattr(shared_prompt, "FEWEST_TOKENS", 12 * sources + 1)
    copied = generate(tiny(), strategy=FullDepth(), **call)
    assert copied.cache_bytes > apart.cache_bytes
    assert torch.equal(copied.sequences, apart.sequences)
    torch.testing.assert_close(copied.sequences_scores, apart.sequences_scores)
