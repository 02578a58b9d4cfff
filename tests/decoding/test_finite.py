"""Logits that are not finite end a decode with their step and rows; those of a text that has ended do not."""

import pytest

from hsdlab import CALM, FullDepth, generate
from hsdlab.decoding.finite import NotFiniteLogitsError
from hsdlab.testing import prompts, tiny_model


def spoiled(step, row, value=float("nan")):
    """A model whose logits of a row are spoiled in one step."""
    model, calls = tiny_model(), []

    def spoil(head, arguments, logits):
        calls.append(1)
        if len(calls) == step + 1:
            logits[row] = value

    model.lm_head.register_forward_hook(spoil)
    return model


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(
    ("options", "row", "named"),
    [({}, 1, 1), ({"do_sample": True}, 2, 2), ({"num_beams": 2}, 3, 1), ({"do_sample": True, "num_beams": 2}, 4, 2)],
    ids=["greedy", "sampled", "beams", "sampled-beams"],
)
@pytest.mark.parametrize("step", [0, 2])
def test_step_and_row_are_said(step, options, row, named, value):
    input_ids, mask = prompts(3)
    call = {"input_ids": input_ids, "attention_mask": mask, "max_new_tokens": 5, "eos_token_id": None}
    where = "the prefill" if step == 0 else f"decode step {step}"
    with pytest.raises(NotFiniteLogitsError, match=rf"FullDepth\(\): the logits are not finite in {where}") as found:
        generate(spoiled(step, row, value), strategy=FullDepth(), **call, **options)
    assert found.value.rows == (named,)


def test_one_token_that_is_not_a_number_is_enough():
    model = tiny_model()

    def spoil(head, arguments, logits):
        logits[0, -1, 7] = float("nan")

    model.lm_head.register_forward_hook(spoil)
    with pytest.raises(NotFiniteLogitsError, match="sequence 0 of the batch"):
        generate(model, strategy=CALM(2.0), input_ids=prompts(2)[0], max_new_tokens=3)


def test_tokens_that_are_ruled_out_and_rows_that_have_ended_may_be_infinite():
    input_ids, mask = prompts(2)
    call = {"input_ids": input_ids, "attention_mask": mask, "max_new_tokens": 5}
    plain = generate(tiny_model(), strategy=FullDepth(), eos_token_id=None, **call)
    first = int(plain.sequences[0, input_ids.shape[1]])  # with which the first row's text ends at once
    assert (plain.sequences[1, input_ids.shape[1] :] != first).all()
    ended = generate(spoiled(3, 0), strategy=FullDepth(), eos_token_id=first, pad_token_id=0, **call)
    assert ended.sequences[1].tolist() == plain.sequences[1].tolist()
    generate(tiny_model(), strategy=FullDepth(), suppress_tokens=[first], eos_token_id=None, **call)
