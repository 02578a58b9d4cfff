"""Sequences of a batch that have ended, and finished sources of a beam search, run no layer; the others go on."""

from itertools import product

import pytest
import torch

from hsdlab import HSD, FullDepth
from hsdlab.decoding import ends, live_rows
from hsdlab.testing import decode
from tests.law_cells import by_family
from tests.strategies_for_tests import Changing

ROWS, ENDS = 12, list(range(3, 20))


def batch(rows=ROWS):
    """Random prompts of 5 tokens, without padding."""
    ids = torch.randint(20, 60, (rows, 5), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "max_new_tokens": 12, "eos_token_id": ENDS}


def rows_run(seen):
    """Rows that ran the last layer in each decode step."""
    return [counts[-1] for counts in seen.passes.tokens_run[1:]]


@pytest.mark.parametrize("strategy", [FullDepth(), HSD(2, 0, 4)], ids=repr)
@pytest.mark.parametrize("mode", ["greedy", "sampling"])
def test_sequences_are_left_out_once_a_quarter_has_ended(family_model, strategy, mode):
    seen = decode(family_model, strategy, mode, **batch())
    expected, running = [], ROWS
    for live in seen.output.trace.live.sum(dim=1).tolist():
        running = live if live <= 0.75 * running else running
        expected.append(running)
    assert rows_run(seen) == expected


def test_the_batch_of_these_tests_has_sequences_that_are_left_out(tiny):
    assert len(set(rows_run(decode(tiny(), FullDepth(), **batch())))) > 2


@pytest.mark.parametrize("mode", ["greedy", "sampling"])
def test_the_other_sequences_decode_as_before(family_model, mode, monkeypatch):
    seen = decode(family_model, FullDepth(), mode, **batch())
    monkeypatch.setattr(live_rows, "SHARE_ENDED", 2)  # never
    before = decode(family_model, FullDepth(), mode, **batch())
    assert set(rows_run(before)) == {ROWS}
    assert torch.equal(seen.output.sequences, before.output.sequences)
    assert torch.equal(seen.output.trace.executed, before.output.trace.executed)
    assert torch.equal(seen.output.trace.live, before.output.trace.live)
    for step, live in enumerate(seen.output.trace.live, start=1):
        torch.testing.assert_close(seen.logits[step][live], before.logits[step][live])


@pytest.mark.parametrize(
    ("strategy", "options"),
    [
        (Changing(), {}),  # keys and values are owed
        (Changing(), {"num_beams": 2}),
        (FullDepth(), {"num_beams": 2, "do_sample": True}),
        (FullDepth(), {"num_return_sequences": 2, "do_sample": True}),
        (FullDepth(), {"output_hidden_states": True}),
        (FullDepth(), {"eos_token_id": None}),
    ],
    ids=lambda value: repr(value) if isinstance(value, dict) else "",
)
def test_where_none_is_left_out(tiny, strategy, options):
    ran = [max(counts) for counts in decode(tiny(), strategy, **{**batch(), **options}).passes.tokens_run[1:]]
    assert len(set(ran)) == 1


SEARCHES = [
    {"num_beams": 2},
    {"num_beams": 4, "num_return_sequences": 3, "length_penalty": 0.0},
    {"num_beams": 2, "early_stopping": True},
    {"num_beams": 2, "early_stopping": "never", "length_penalty": -1.0},
]


SEARCHED = by_family(product([FullDepth(), HSD(2, 0, 4)], SEARCHES))


@pytest.mark.parametrize(("family_model", "strategy", "search"), SEARCHED, ids=str, indirect=["family_model"])
def test_finished_sources_of_a_beam_search_are_left_out(family_model, strategy, search, monkeypatch):
    seen = decode(family_model, strategy, **batch(), **search)
    ran = rows_run(seen)
    assert ran == sorted(ran, reverse=True)
    assert all(rows % search["num_beams"] == 0 for rows in ran)
    assert seen.output.trace.compute_steps == sum(ran)
    assert seen.output.trace.layers.tokens.tolist() == torch.tensor(seen.passes.tokens_run[1:]).sum(dim=0).tolist()
    monkeypatch.setattr(live_rows, "SHARE_FINISHED", 2)  # never
    before = decode(family_model, strategy, **batch(), **search)
    assert set(rows_run(before)) == {ROWS * search["num_beams"]}
    assert torch.equal(seen.output.sequences, before.output.sequences)
    torch.testing.assert_close(seen.output.sequences_scores, before.output.sequences_scores)
    assert torch.equal(seen.output.trace.executed, before.output.trace.executed)


@pytest.mark.parametrize("search", SEARCHES, ids=repr)
def test_a_search_without_its_finished_sources_returns_what_plain_generate_returns(tiny, search):
    model = tiny()
    seen = decode(model, FullDepth(), **batch(), **search)
    with torch.no_grad():
        plain = model.generate(**batch(), **search)
    assert torch.equal(seen.output.sequences, plain)


def test_the_searches_of_these_tests_have_sources_that_are_left_out(tiny):
    for search in SEARCHES:
        assert len(set(rows_run(decode(tiny(), FullDepth(), **batch(), **search)))) > 2, search


def test_a_transformers_without_the_watched_method_leaves_no_source_out(tiny, monkeypatch):
    monkeypatch.setattr(ends, "_BEAM_CHECK", "_another_name")
    assert set(rows_run(decode(tiny(), FullDepth(), **batch(), num_beams=2))) == {2 * ROWS}
