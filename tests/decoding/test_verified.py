"""Verified decoding: whatever drafts, the greedy text is that of full depth, token by token."""

import itertools
from collections import Counter

import pytest
import torch
from scipy.stats import chisquare
from transformers import LogitsProcessor, LogitsProcessorList, MaxLengthCriteria, StoppingCriteria, StoppingCriteriaList

from hsdlab import (
    CALM,
    HSD,
    FullDepth,
    OracleExit,
    ScheduledStrategy,
    SkipDecode,
    StaticDepth,
    UserError,
    Verified,
    generate,
)
from hsdlab.decoding.draft_length import DraftLength
from hsdlab.decoding.finite import NotFiniteLogitsError
from hsdlab.decoding.history import History
from hsdlab.decoding.token_counts import TokenCounts
from hsdlab.testing import decode, prompts, tiny_model
from tests.law_cells import by_family, ids, in_turns
from tests.strategies_for_tests import RandomPlan

NEW = 14
DRAFTS = [
    HSD(2, 0, 4),
    SkipDecode(2, 5),
    StaticDepth(3),
    CALM(0.3),
    RandomPlan(share=0.5),
    FullDepth(),
]


class PenaltyByLength(LogitsProcessor):
    """Favours other tokens at each length, so that a wrong length is seen."""

    def __call__(self, input_ids, scores):
        return scores + 3.0 * (torch.arange(scores.shape[1]) % 5 == input_ids.shape[1] % 5)


class EndsAtOddToken(StoppingCriteria):
    def __call__(self, input_ids, scores, **kwargs):
        return input_ids[:, -1] % 4 == 3


def call(rows=3, **options):
    ids, mask = prompts(rows)
    return {"input_ids": ids, "attention_mask": mask, "max_new_tokens": NEW, "eos_token_id": [3, 4, 5], **options}


LENGTHS = [(1, False), (4, True), (20, False)]  # and whether adaptive
LOSSLESS = [Verified(draft, *length) for draft, length in itertools.product(DRAFTS, LENGTHS)]


@pytest.mark.parametrize(("family_model", "strategy"), by_family(LOSSLESS), ids=ids, indirect=["family_model"])
def test_greedy_text_is_that_of_full_depth(family_model, strategy):
    expected = generate(family_model, strategy=FullDepth(), **call(), output_scores=True)
    output = generate(family_model, strategy=strategy, **call(), output_scores=True)
    assert torch.equal(output.sequences, expected.sequences)
    assert output.trace.average_layers == 6
    assert torch.equal(output.trace.executed, expected.trace.executed)
    for step, live in enumerate(torch.cat([torch.ones(1, 3, dtype=torch.bool), expected.trace.live])):
        torch.testing.assert_close(output.scores[step][live], expected.scores[step][live], rtol=1e-6, atol=1e-6)


PROCESSED = {
    "repetition penalty": {"repetition_penalty": 1.7},
    "no repeated bigram": {"no_repeat_ngram_size": 2},
    "fewest new tokens": {"min_new_tokens": 9},
    "suppressed": {"suppress_tokens": [10, 11, 12], "begin_suppress_tokens": [20, 21]},
    "no end": {"eos_token_id": None},
    "own processor": {"logits_processor": LogitsProcessorList([PenaltyByLength()])},
    "encoder penalties": {"encoder_repetition_penalty": 2.0, "encoder_no_repeat_ngram_size": 2},
    "a length of a criterion": {"stopping_criteria": StoppingCriteriaList([MaxLengthCriteria(20)])},
    "a criterion that answers for all": {
        "stopping_criteria": StoppingCriteriaList([lambda ids, scores: ids.shape[1] > 19])
    },
    "own criterion": {"stopping_criteria": StoppingCriteriaList([EndsAtOddToken()])},
    "a token": {"max_new_tokens": 1},
    "two tokens": {"max_new_tokens": 2},
    "three tokens": {"max_new_tokens": 3, "eos_token_id": None},
}


@pytest.mark.parametrize("options", PROCESSED.values(), ids=PROCESSED)
@pytest.mark.parametrize(
    ("draft", "rows"), in_turns([(HSD(2, 0, 4), 3), (HSD(2, 0, 4), 1), (CALM(0.3), 3), (CALM(0.3), 1)], 2), ids=ids
)
def test_processors_and_criteria_act_as_at_full_depth(tiny, draft, rows, options):
    model, inputs = tiny(), call(3, **options)
    inputs |= {name: inputs[name][:rows] for name in ("input_ids", "attention_mask")}
    expected = generate(model, strategy=FullDepth(), **inputs)
    output = generate(model, strategy=Verified(draft, 5), **inputs)
    assert torch.equal(output.trace.live, expected.trace.live)
    for row, count in enumerate(expected.trace.live.sum(dim=0) + 1):
        width = inputs["input_ids"].shape[1] + count
        assert torch.equal(output.sequences[row, :width], expected.sequences[row, :width])


def test_a_prefix_constraint_sees_its_own_row(tiny):
    def allowed(row, text):
        return list(range(10 + row, 60, 3))

    model, inputs = tiny(), call(3, prefix_allowed_tokens_fn=allowed, eos_token_id=None)
    expected = generate(model, strategy=FullDepth(), **inputs)
    assert torch.equal(generate(model, strategy=Verified(HSD(2, 0, 4)), **inputs).sequences, expected.sequences)


def test_stop_strings_end_a_text_within_a_draft(family_model):
    """A stop string of several tokens, by transformers' own criterion."""
    model = family_model
    inputs = call(3, eos_token_id=None)
    free = generate(model, strategy=FullDepth(), **inputs).sequences
    start = inputs["input_ids"].shape[1]
    wanted = free[0, start + 4 : start + 6].tolist()
    first = next(end for end in range(2, NEW) if free[0, start + end - 2 : start + end].tolist() == wanted)

    class Ends(StoppingCriteria):
        def __call__(self, input_ids, scores, **kwargs):
            return (input_ids[:, -2:] == torch.tensor(wanted)).all(dim=1)

    inputs |= {"stopping_criteria": StoppingCriteriaList([Ends()])}
    output = generate(model, strategy=Verified(FullDepth(), 9, adaptive=False), **inputs)
    assert int(output.trace.live[:, 0].sum()) + 1 == first
    assert output.sequences[0, start : start + first].tolist() == free[0, start : start + first].tolist()


COUNTED = by_family(itertools.product([HSD(2, 0, 4), StaticDepth(4, keep="bottom"), SkipDecode(2, 5)], [None, 16]))


@pytest.mark.parametrize(("family_model", "draft", "vocabulary"), COUNTED, ids=ids, indirect=["family_model"])
def test_what_is_counted_is_what_ran(family_model, draft, vocabulary):
    """A single row has no padding: each layer ran for as many tokens as the ledger says."""
    ids, mask = prompts(3)
    strategy = Verified(draft, 4, adaptive=False, draft_vocabulary=vocabulary)
    ids = ids[:1, mask[0].bool()]
    seen = decode(family_model, strategy, input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW)
    ran = torch.tensor(seen.passes.tokens_run[1:])
    trace = seen.output.trace
    assert trace.layers.tokens.tolist() == ran.sum(dim=0).tolist()
    assert trace.layers.passes.tolist() == (ran > 0).sum(dim=0).tolist()
    assert trace.drafts.forward_passes == len(ran)
    assert trace.filled == torch.tensor(seen.passes.tokens_late[1:]).sum()
    assert trace.average_layers == 6
    assert trace.compute_layers > 6 or trace.drafts.sums()["accepted_drafts"] == 0


def test_a_prefix_draft_computes_its_layers_once(tiny):
    """What LayerSkip's drafts cost: the verification runs only the layers above, and the last token."""
    ids, mask = prompts(3)
    ids = ids[:1, mask[0].bool()]
    strategy = Verified(StaticDepth(4, keep="bottom"), 4, adaptive=False)
    seen = decode(
        tiny(), strategy, input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, eos_token_id=None
    )
    rounds = seen.output.trace.drafts.rounds[0]
    drafted = sum(count for count, _ in rounds)
    verifications = len(rounds)
    tokens = seen.output.trace.layers.tokens.tolist()
    assert tokens == [drafted + verifications] * 6


def test_a_draft_at_full_depth_is_always_accepted(family_model):
    for options in ({}, {"do_sample": True, "temperature": 1.5}):
        trace = generate(family_model, strategy=Verified(FullDepth(), 4), **call(3, **options)).trace
        assert all(drafted == accepted for row in trace.drafts.rounds[:3] for drafted, accepted in row[:-1])


def test_rejected_drafts_are_in_the_ledger(tiny):
    trace = generate(tiny(), strategy=Verified(RandomPlan(share=0.3), 4, adaptive=False), **call()).trace
    sums = trace.drafts.sums()
    assert 0 <= sums["accepted_drafts"] < sums["draft_tokens"]
    assert sums["verifications"] == sum(len(row) for row in trace.drafts.rounds)
    accepted = [sum(kept for _, kept in row) for row in trace.drafts.rounds]
    own = [len(row) for row in trace.drafts.rounds]
    steps = trace.live.sum(dim=0).tolist()
    assert all(a <= s <= a + o for a, s, o in zip(accepted, steps, own, strict=True))


def test_the_ledger_says_what_became_of_the_drafts(tiny):
    drafts = generate(tiny(), strategy=Verified(HSD(2, 0, 4), 4), **call()).trace.drafts
    sums = drafts.sums()
    assert repr(drafts) == (
        f"DraftCounts(sequences=3, verifications={sums['verifications']}, draft_tokens={sums['draft_tokens']}, "
        f"accepted_drafts={sums['accepted_drafts']})"
    )


class Grows(ScheduledStrategy):
    """Runs one layer more in each step."""

    def layers_at(self, step, num_layers, max_steps):
        return range(min(1 + step, num_layers))


@pytest.mark.parametrize(
    ("draft", "notes"),
    [(HSD(2, 0, 4), False), (SkipDecode(2, 5), False), (StaticDepth(3), False), (Grows(), True), (CALM(0.3), True)],
    ids=repr,
)
def test_what_is_skipped_is_kept_only_for_drafts_that_may_need_it(tiny, draft, notes, monkeypatch):
    """A layer that a shrinking schedule skips runs for no later draft of the row, whatever step other rows are at."""
    kept = []
    passed_by = History.passed_by
    monkeypatch.setattr(History, "passed_by", lambda *args: kept.append(args[1]) or passed_by(*args))
    output = generate(tiny(), strategy=Verified(draft, 4), **call())
    assert bool(kept) == notes
    assert output.trace.drafts.sums()["draft_tokens"] > 0
    assert torch.equal(output.sequences, generate(tiny(), strategy=FullDepth(), **call()).sequences)


TOP = 3


def probabilities(model, prompt, steps, **options):
    """Of every text of some tokens, by transformers' own warpers: {tokens: probability}."""
    with torch.no_grad():
        found = {(): 1.0}
        for _ in range(steps):
            longer = {}
            for text, probability in found.items():
                ids = torch.cat([prompt, torch.tensor(text, dtype=torch.long)[None]], dim=1)
                out = model.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=1,
                    do_sample=True,
                    output_scores=True,
                    return_dict_in_generate=True,
                    eos_token_id=None,
                    **options,
                )
                for token, share in enumerate(out.scores[0][0].softmax(-1).tolist()):
                    if share > 0:
                        longer[(*text, token)] = probability * share
            found = longer
        return found


@pytest.mark.parametrize(
    "options", [{"temperature": 1.3, "top_k": TOP}, {"temperature": 4.0, "top_p": 0.9, "top_k": 8}], ids=repr
)
@pytest.mark.parametrize(
    ("draft", "vocabulary"), [(HSD(2, 0, 4), None), (CALM(0.3), None), (StaticDepth(3), 40)], ids=repr
)
def test_samples_have_the_distribution_of_full_depth(tiny, draft, vocabulary, options):
    """A chi-square test over all texts of three tokens, against the probabilities of plain sampling."""
    model = tiny()
    prompt = prompts(3)[0][:1, -4:]
    expected = probabilities(model, prompt, 3, **options)
    torch.manual_seed(1)
    samples = 3000
    output = generate(
        model,
        input_ids=prompt,
        attention_mask=torch.ones_like(prompt),
        strategy=Verified(draft, 2, adaptive=False, draft_vocabulary=vocabulary),
        max_new_tokens=3,
        do_sample=True,
        num_return_sequences=samples,
        eos_token_id=None,
        **options,
    )
    found = Counter(map(tuple, output.sequences[:, prompt.shape[1] :].tolist()))
    assert set(found) <= set(expected)
    common = [text for text, share in expected.items() if share * samples >= 5]
    counts = [found[text] for text in common]
    shares = [expected[text] * samples for text in common]
    assert chisquare([*counts, samples - sum(counts)], [*shares, samples - sum(shares)]).pvalue > 1e-3
    accepted = output.trace.drafts.sums()
    assert 0 < accepted["accepted_drafts"] < accepted["draft_tokens"]


@pytest.mark.parametrize("options", [{}, {"do_sample": True}], ids=repr)
def test_where_no_token_can_be_drafted_the_text_is_full_depths(tiny, options):
    """The draft's vocabulary holds the ids below 30 and those of the prompts, and the text may only have others."""
    inputs = call(3, **options, eos_token_id=None)
    outside = [token for token in range(30, 64) if token not in inputs["input_ids"]]
    inputs |= {"prefix_allowed_tokens_fn": lambda row, text: outside}
    output = generate(tiny(), strategy=Verified(HSD(2, 0, 4), draft_vocabulary=30), **inputs)
    new = output.sequences[:, inputs["input_ids"].shape[1] :]
    assert torch.isin(new, torch.tensor(outside)).all()
    if not options:
        assert torch.equal(output.sequences, generate(tiny(), strategy=FullDepth(), **inputs).sequences)


@pytest.fixture
def counted(tmp_path):
    """A file that names some tokens of a tiny model, the most frequent first."""

    def write(*ids):
        path = tmp_path / "token_counts.jsonl"
        counts = TokenCounts(ids, tuple(map(str, ids)), tuple(range(len(ids), 0, -1)))
        path.write_text(counts.text(), encoding="utf-8")
        return str(path)

    return write


def test_drafts_are_made_of_the_tokens_in_a_file_and_of_the_prompts(tiny, counted):
    model, inputs = tiny(), call(3, eos_token_id=None)
    file = counted(50, 7, 31, 12)
    expected = generate(model, strategy=FullDepth(), **inputs)
    strategy = Verified(FullDepth(), 4, draft_vocabulary=file)
    output = generate(model, strategy=strategy, **inputs)
    assert torch.equal(output.sequences, expected.sequences)
    allowed = {50, 7, 31, 12, *inputs["input_ids"].flatten().tolist()}
    assert set(strategy.draft_tokens(inputs["input_ids"]).tolist()) == allowed
    drafts, new = output.trace.drafts, output.sequences[:, inputs["input_ids"].shape[1] :]
    assert drafts.head_passes == max(map(len, drafts.rounds))  # of the verifications alone
    assert drafts.draft_head_weights_read % (len(allowed) * model.config.hidden_size) == 0
    # a draft at full depth is accepted exactly as far as its tokens are in the file
    for row, rounds in enumerate(drafts.rounds):
        place = 1
        for count, accepted in rounds:
            inside = [token in allowed for token in new[row, place : place + count].tolist()]
            assert accepted == (inside.index(False) if False in inside else count)
            place += accepted + 1
    assert any(count > accepted for rounds in drafts.rounds for count, accepted in rounds)
    assert any(accepted for rounds in drafts.rounds for _, accepted in rounds)


def test_a_file_whose_ids_the_model_does_not_have_is_refused(tiny, counted):
    with pytest.raises(UserError, match=r"holds the id 64; this model has 64\. It was counted with another tokenizer"):
        generate(tiny(), strategy=Verified(HSD(2, 0, 4), draft_vocabulary=counted(3, 64)), **call())
    with pytest.raises(FileNotFoundError, match="draft_vocabulary='nowhere': there is no such file"):
        generate(tiny(), strategy=Verified(HSD(2, 0, 4), draft_vocabulary="nowhere"), **call())


@pytest.mark.parametrize(
    ("strategy", "options", "message"),
    [
        (Verified(HSD(2, 0, 4)), {"num_beams": 2}, "Beam search"),
        (Verified(HSD(2, 0, 4)), {"compile": True}, "compiled"),
        (Verified(HSD(2, 0, 4)), {"penalty_alpha": 0.6, "top_k": 4}, "cannot be verified"),
        (Verified(HSD(2, 0, 4)), {"streamer": object()}, "streamer"),
        (Verified(HSD(2, 0, 4), draft_vocabulary=65), {}, "this model has 64 tokens"),
        (Verified(HSD(2, 0, 4)), {"output_hidden_states": True}, "output_hidden_states"),
        (Verified(HSD(2, 0, 4, prompt_min_exit=1, prompt_max_exit=5)), {}, "prompt"),
        (Verified(StaticDepth(9)), {}, "StaticDepth"),
    ],
)
def test_what_cannot_be_verified_is_refused(tiny, strategy, options, message):
    with pytest.raises(UserError, match=message):
        generate(tiny(), strategy=strategy, **call(**options))


@pytest.mark.parametrize(
    "arguments",
    [
        {"draft": OracleExit()},
        {"draft": Verified(FullDepth())},
        {"draft": "HSD"},
        {"draft": HSD(), "num_draft_tokens": 0},
        {"draft": HSD(), "num_draft_tokens": True},
        {"draft": HSD(), "stop_below": 1.5},
        {"draft": HSD(), "adaptive": "yes"},
        {"draft": HSD(), "draft_vocabulary": 0},
        {"draft": HSD(), "draft_vocabulary": True},
        {"draft": HSD(), "draft_vocabulary": 0.5},
    ],
    ids=repr,
)
def test_arguments_that_make_no_sense(arguments):
    with pytest.raises(UserError, match="Verified: "):
        Verified(**arguments)


def test_a_confidence_stop_ends_drafts(tiny):
    stopped = generate(tiny(), strategy=Verified(HSD(2, 0, 4), 6, adaptive=False, stop_below=1.0), **call()).trace
    assert all(drafted <= 1 for row in stopped.drafts.rounds for drafted, _ in row)
    free = generate(tiny(), strategy=Verified(HSD(2, 0, 4), 6, adaptive=False), **call()).trace
    assert any(drafted == 6 for row in free.drafts.rounds for drafted, _ in row)


def test_logits_that_are_not_finite_are_refused():
    model = tiny_model()
    with torch.no_grad():
        model.lm_head.weight[7] = torch.nan
    with pytest.raises(NotFiniteLogitsError):
        generate(model, strategy=Verified(HSD(2, 0, 4)), **call())


def test_the_length_follows_the_acceptance():
    rows = torch.arange(3)
    length = DraftLength(most=8, cost=0.5)
    length.saw(rows, torch.tensor([8, 8, 8]), torch.tensor([8, 3, 0]))
    for _ in range(5):
        length.saw(rows, torch.tensor([8, 8, 8]), torch.tensor([8, 3, 0]))
    long, middle, short = length.of_rows(rows).tolist()
    assert long == 8
    assert short == 1
    assert short <= middle < long
    assert DraftLength(most=5).of_rows(rows).tolist() == [5, 5, 5]
