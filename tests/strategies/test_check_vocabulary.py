"""Checks over some tokens only: who exits, what it costs, where the token comes from, and whose file it is."""

from types import SimpleNamespace

import pytest
import torch

from hsdlab import CALM, HSD, PABEE, Compose, DeeBERT, UserError, Verified, generate
from hsdlab.decoding.token_counts import TokenCounts
from hsdlab.testing import decode, prompts, tiny_model
from tests.tiny_checkpoints import TOKENS, tiny_tokenizer


@pytest.fixture(scope="module")
def model():
    return tiny_model(dtype=torch.float64)


@pytest.fixture
def file(tmp_path):
    """Write a file that names some tokens, the most frequent first."""

    def write(*ids, tokens=None):
        path = tmp_path / "token_counts.jsonl"
        names = tuple(map(str, ids)) if tokens is None else tokens
        path.write_text(TokenCounts(ids, names, (1,) * len(ids)).text(), encoding="utf-8")
        return str(path)

    return write


@pytest.mark.parametrize(
    "strategy",
    [CALM(0.5), CALM(0.5, gate=0.5), CALM(0.4, probe_layers=2, shortlist=8), DeeBERT(0.7), PABEE(patience=1)],
    ids=repr,
)
def test_checks_over_the_whole_vocabulary_are_those_of_the_whole_head(model, file, strategy):
    usual = decode(model, strategy, eos_token_id=None).output
    assert 0 < usual.trace.average_layers < 6  # some exit
    for whole in (64, file(*reversed(range(64)))):
        ours = decode(model, strategy.changed(check_vocabulary=whole), eos_token_id=None).output
        assert torch.equal(ours.sequences, usual.sequences)
        assert torch.equal(ours.trace.executed, usual.trace.executed)
    fewer = decode(model, strategy.changed(check_vocabulary=9), eos_token_id=None).output
    assert not torch.equal(fewer.trace.executed, usual.trace.executed)
    assert int(fewer.sequences.max()) >= 9  # the token comes from the whole head


def test_a_check_costs_the_rows_of_its_tokens(model, file):
    input_ids, mask = prompts(3)
    options = {"input_ids": input_ids, "attention_mask": mask, "max_new_tokens": 6, "eos_token_id": None}

    def probes(**cheap):  # two checks in each of 5 steps of 3 rows; nobody exits
        strategy = CALM(0.999999, probe_layers=[1, 3], **cheap)
        return generate(model, strategy=strategy, **options).trace.probes

    width = model.config.hidden_size
    numbered, named, few = (
        probes(check_vocabulary=20),
        probes(check_vocabulary=file(50, 7, 3)),
        probes(check_vocabulary=20, shortlist=4),
    )
    assert (numbered.rows, numbered.weights, numbered.weights_read) == (30, 30 * 20 * width, 10 * 20 * width)
    assert (named.rows, named.weights, named.weights_read) == (30, 30 * 3 * width, 10 * 3 * width)
    assert (few.rows, few.weights, few.weights_read) == (30, 15 * 24 * width, 5 * 20 * width + 15 * 4 * width)


def test_patience_counts_tokens_of_the_file(model, file):
    """The same tokens in another order are the same predictions."""
    orders = [(50, 7, 31, 12), (12, 50, 31, 7)]
    first, second = (
        decode(model, PABEE(patience=1, shortlist=3, check_vocabulary=file(*ids)), eos_token_id=None).output.trace
        for ids in orders
    )
    assert torch.equal(first.executed, second.executed)
    assert first.average_layers < 6


def test_a_file_that_does_not_fit_is_refused(model, file):
    with pytest.raises(UserError, match=r"check_vocabulary=.*holds the id 64; this model has 64\."):
        generate(model, strategy=CALM(check_vocabulary=file(3, 64)), input_ids=prompts(1)[0])
    with pytest.raises(UserError, match=r"check_vocabulary=.*holds 1 tokens; expected 2 or more"):
        generate(model, strategy=CALM(check_vocabulary=file(3)), input_ids=prompts(1)[0])
    with pytest.raises(FileNotFoundError, match="check_vocabulary='nowhere': there is no such file"):
        generate(model, strategy=CALM(check_vocabulary="nowhere"), input_ids=prompts(1)[0])


@pytest.mark.parametrize(
    "made", [CALM(0.5), Compose(HSD(), CALM(0.5)), Verified(Compose(HSD(), CALM(0.5)), 2)], ids=repr
)
def test_a_file_of_another_tokenizer_is_refused_before_a_run(file, made):
    trainer, module = SimpleNamespace(callbacks=[]), SimpleNamespace(tokenizer=tiny_tokenizer())
    confidence = made
    while not isinstance(confidence, CALM):
        confidence = getattr(confidence, "confidence", None) or confidence.draft
    confidence.check_vocabulary = file(3, 5, tokens=(TOKENS[3], TOKENS[5]))
    made.setup(trainer, module, "test")
    confidence.check_vocabulary = file(3, 5, tokens=(TOKENS[3], "other"))
    with pytest.raises(UserError, match=r"check_vocabulary=.*: the id 5 is the token 'other' there"):
        made.setup(trainer, module, "test")
