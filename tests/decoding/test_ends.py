"""Stop strings and criteria of the caller's: each row of a batch ends by itself, where it would end alone."""

import pytest
import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from hsdlab import CALM, HSD, FullDepth, generate
from hsdlab.errors import UserError
from hsdlab.modules import DecodeModule
from tests.tiny_checkpoints import tiny_llama, tiny_tokenizer

WIDTH = 9
STRATEGIES = [FullDepth(), HSD(num_skipped=1, min_exit=0, max_exit=2), CALM(threshold=0.3)]


def batch():
    """Three prompts, padded on the left."""
    ids = torch.tensor([[5, 9, 30, 44, 60], [1, 1, 70, 8, 12], [1, 33, 21, 90, 17]])
    return {"input_ids": ids, "attention_mask": (ids != 1).long()}


def rows_of(output, length=5):
    """The real new tokens of each row."""
    counts = output.trace.live.sum(dim=0) + 1
    return [row[length : length + count].tolist() for row, count in zip(output.sequences, counts, strict=True)]


def stop_string(model, tokenizer, strategy, **options):
    """A string that the first row writes early, and not every row at once."""
    free = rows_of(generate(model, **batch(), strategy=strategy, max_new_tokens=WIDTH, pad_token_id=1, **options))
    return tokenizer.decode(free[0][2:3]), free


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("eos", [None, 1])
@pytest.mark.parametrize("strategy", STRATEGIES, ids=repr)
def test_each_row_ends_at_its_own_stop_string(strategy, eos, num_beams):
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    options = {"num_beams": num_beams, "eos_token_id": eos, "do_sample": False}
    stop, _ = stop_string(model, tokenizer, strategy, **options)
    options |= {"max_new_tokens": WIDTH, "pad_token_id": 1, "stop_strings": [stop], "tokenizer": tokenizer}
    together = generate(model, **batch(), strategy=strategy, **options)
    alone = []
    for row in range(3):
        mask = batch()["attention_mask"][row : row + 1]
        ids = batch()["input_ids"][row : row + 1][:, mask[0].bool()]
        alone += rows_of(generate(model, input_ids=ids, strategy=strategy, **options), ids.shape[1])
    assert rows_of(together) == alone
    if num_beams == 1:
        assert len({len(row) for row in alone}) > 1
        assert tokenizer.decode(alone[0]).endswith(stop)
        plain = model.generate(**batch(), **options) if isinstance(strategy, FullDepth) else together.sequences
        assert torch.equal(together.sequences, plain)
    assert not together.trace.executed[~together.trace.live].any()


def test_a_criterion_of_the_callers_ends_each_row_by_itself():
    class AtLength(StoppingCriteria):
        """Ends row r after r + 2 new tokens."""

        def __call__(self, input_ids, scores, **kwargs):
            return torch.tensor([input_ids.shape[1] - 5 >= row + 2 for row in range(len(input_ids))])

    options = {"max_new_tokens": WIDTH, "pad_token_id": 1, "eos_token_id": None, "do_sample": False}
    free = rows_of(generate(tiny_llama(), **batch(), strategy=FullDepth(), **options))
    criteria = StoppingCriteriaList([AtLength()])
    output = generate(tiny_llama(), **batch(), strategy=FullDepth(), stopping_criteria=criteria, **options)
    assert output.trace.live.sum(dim=0).tolist() == [1, 2, 3]
    assert rows_of(output) == [row[: index + 2] for index, row in enumerate(free)]


def test_stop_strings_need_the_tokenizer():
    with pytest.raises(UserError, match="stop_strings: give the tokenizer too"):
        generate(tiny_llama(), **batch(), strategy=FullDepth(), max_new_tokens=3, stop_strings=["a"])


def test_a_module_decodes_with_stop_strings():
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    options = {"max_new_tokens": WIDTH, "num_beams": 1, "metrics": ["rouge"]}
    data = {"ids": ["a", "b", "c"], "sources": ["x"] * 3, "references": [["y"]] * 3, "positions": [0, 1, 2], **batch()}

    def records(**generate_kwargs):
        module = DecodeModule(model, tokenizer, generate_kwargs=generate_kwargs, **options)
        with FullDepth().applied_to(model):
            return module._decode(data, 0)

    free = records()
    stop = free[0].tokens[2]
    stopped = records(stop_strings=[stop])
    assert stopped[0].prediction.endswith(stop.strip())
    assert stopped[0].new_tokens < free[0].new_tokens
    assert stopped[0].token_ids == free[0].token_ids[:3]
    assert [record.token_ids for record in stopped[1:]] == [
        record.token_ids[: 1 + record.tokens.index(stop)] if stop in record.tokens else record.token_ids
        for record in free[1:]
    ]
