"""ROUGE, BLEU and BERTScore against the packages that define them."""

import itertools
import json
import math
import pickle
import random
import shutil
from operator import itemgetter

import pytest
import sacrebleu
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from hsdlab.metrics import BLEU, ROUGE, BERTScore, bleu_from_statistics, bleu_statistics, rouge_scores
from hsdlab.models.embedded import embedded_folder
from tests.prepared_data import DATA, REASON

DATA_SETS = ("e2e_nlg", "common_gen", "xsum", "cnn_dailymail", "patient_doctor", "reddit_tifu")


def numbers(metric) -> dict[str, float]:
    values = metric.compute()
    assert all(value.ndim == 0 and value.dtype == torch.float64 for value in values.values())
    return {key: value.item() for key, value in values.items()}


def real_texts(name: str, count: int) -> tuple[list[str], list[list[str]]]:
    """Take real references; the prediction is one of them with words dropped, doubled and swapped."""
    path = DATA / name / "test.jsonl"
    if not path.is_file():
        pytest.skip(REASON)
    with path.open(encoding="utf-8") as lines:
        references = [json.loads(line)["references"] for line in itertools.islice(lines, count)]
    source = random.Random(0)
    predictions = []
    for texts in references:
        words = source.choice(texts).split()[:60]
        words = [word for word in words for _ in range(source.choice([0, 1, 1, 1, 1, 2]))]
        predictions.append(" ".join(words[5:] + words[:5]))
    return predictions, references


def rouge_oracle(predictions, references, use_stemmer) -> dict[str, float]:
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=use_stemmer)
    return {
        key: sum(
            max(scorer.score(text, prediction)[key].fmeasure for text in texts)
            for prediction, texts in zip(predictions, references, strict=True)
        )
        / len(predictions)
        for key in ("rouge1", "rouge2", "rougeL")
    }


def bleu_oracle(predictions, references, lowercase) -> dict[str, float]:
    # sacrebleu wants one stream per reference; None stands where an example has fewer.
    streams = [list(stream) for stream in itertools.zip_longest(*references)]
    return {
        f"bleu{order}": sacrebleu.BLEU(max_ngram_order=order, lowercase=lowercase)
        .corpus_score(predictions, streams)
        .score
        / 100
        for order in (1, 2, 3, 4)
    }


def bertscore_oracle(encoder, predictions, references, **kwargs) -> torch.Tensor:
    """Score (examples, [precision, recall, F1]) by the package, pair by pair, best over references by key."""
    from bert_score import BERTScorer

    scorer = BERTScorer(model_type=str(encoder), device="cpu", **kwargs)
    scorer._tokenizer.model_max_length = 46
    rows = []
    for prediction, texts in zip(predictions, references, strict=True):
        row = torch.zeros(3)
        pairs = [text for text in texts if text.strip()] if prediction.strip() else []
        if pairs:
            row = torch.stack(scorer.score([prediction] * len(pairs), pairs), dim=-1).amax(dim=0)
        rows.append(row)
    return torch.stack(rows)


@pytest.fixture(params=["ROUGE", "BLEU", "BERTScore"])
def metric(request, encoder):
    return (
        BERTScore(encoder=encoder) if request.param == "BERTScore" else {"ROUGE": ROUGE, "BLEU": BLEU}[request.param]()
    )


# The numbers of the packages


@pytest.mark.parametrize("use_stemmer", [False, True])
def test_rouge_equals_rouge_score(random_texts, use_stemmer):
    metric = ROUGE(use_stemmer=use_stemmer)
    metric.update(*random_texts)
    expected = rouge_oracle(*random_texts, use_stemmer)
    assert numbers(metric) == pytest.approx(expected, abs=1e-12)
    assert expected != rouge_oracle(*random_texts, not use_stemmer)
    assert 0.05 < expected["rouge2"] < expected["rougeL"] < expected["rouge1"] < 1


def test_the_stemmer_changes_the_score():
    assert rouge_scores("dogs running", ["dog runs"])["rouge1"] == 0
    assert rouge_scores("dogs running", ["dog runs"], use_stemmer=True)["rouge1"] == 1


def test_rouge_takes_the_best_reference_for_each_key():
    scores = rouge_scores("a b c d", ["d c b a", "a b x y"])
    assert scores == {"rouge1": 1.0, "rouge2": pytest.approx(1 / 3), "rougeL": 0.5}


@pytest.mark.parametrize("lowercase", [False, True])
def test_bleu_equals_sacrebleu(random_texts, lowercase):
    metric = BLEU(lowercase=lowercase)
    metric.update(*random_texts)
    expected = bleu_oracle(*random_texts, lowercase)
    assert numbers(metric) == expected  # to the last bit
    assert expected != bleu_oracle(*random_texts, not lowercase)
    assert 0.01 < expected["bleu4"] < expected["bleu1"] < 1


def test_lowercase_changes_bleu():
    assert bleu_statistics("The CAT", ["the cat"])[2] == 0
    assert bleu_statistics("The CAT", ["the cat"], lowercase=True)[2] == 2


text = st.lists(st.sampled_from(["the", "The", "cat", "sat", "on", ".", ","]), max_size=8).map(" ".join)
corpus = st.lists(st.tuples(text, st.lists(text, min_size=1, max_size=3)), min_size=1, max_size=4)


@given(corpus=corpus, lowercase=st.booleans())
@settings(max_examples=150, deadline=None)
def test_bleu_of_any_small_corpus_equals_sacrebleu(corpus, lowercase):
    """Short texts reach the odd corners: no match, smoothing, no 4-gram, empty texts."""
    predictions, references = [list(column) for column in zip(*corpus, strict=True)]
    rows = [bleu_statistics(*example, lowercase=lowercase) for example in corpus]
    summed = [sum(column) for column in zip(*rows, strict=True)]
    assert bleu_from_statistics(summed) == bleu_oracle(predictions, references, lowercase)


@given(corpus=corpus, use_stemmer=st.booleans())
@settings(max_examples=50, deadline=None)
def test_rouge_of_any_small_corpus_equals_rouge_score(corpus, use_stemmer):
    predictions, references = [list(column) for column in zip(*corpus, strict=True)]
    metric = ROUGE(use_stemmer=use_stemmer)
    metric.update(predictions, references)
    assert numbers(metric) == pytest.approx(rouge_oracle(predictions, references, use_stemmer), abs=1e-12)


@pytest.mark.parametrize("name", DATA_SETS)
def test_real_texts(name):
    predictions, references = real_texts(name, count=40)
    rouge, bleu = ROUGE(use_stemmer=True), BLEU()
    for start in range(0, len(predictions), 16):
        batch = predictions[start : start + 16], references[start : start + 16]
        rouge.update(*batch)
        bleu.update(*batch)
    assert numbers(rouge) == pytest.approx(rouge_oracle(predictions, references, True), abs=1e-12)
    assert numbers(bleu) == bleu_oracle(predictions, references, False)
    assert 0.3 < numbers(bleu)["bleu4"] < 0.95


@pytest.mark.parametrize("num_layers", [None, 1])
def test_bertscore_equals_bert_score(encoder, random_texts, num_layers):
    metric = BERTScore(encoder=encoder, num_layers=num_layers, batch_size=4)
    scores = torch.tensor([list(score.values()) for score in metric.score(*random_texts)])
    expected = bertscore_oracle(encoder, *random_texts, num_layers=num_layers or 2)
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=0)
    assert scores[:-2].std() > 0.01  # the tiny encoder does tell texts apart
    metric.update(*random_texts)
    mean = dict(zip(metric.keys, expected.double().mean(dim=0).tolist(), strict=True))
    assert numbers(metric) == pytest.approx(mean, abs=1e-5)


@pytest.mark.parametrize("memory_tokens", [0, 60, 2**18])
def test_bertscore_reads_a_text_once_as_far_as_its_memory_goes(encoder, random_texts, memory_tokens, monkeypatch):
    monkeypatch.setattr("hsdlab.metrics.bertscore._Remembering.longest_memory_tokens", memory_tokens)
    predictions, references = random_texts
    metric, read = BERTScore(encoder=encoder), []
    metric.score(["a cat"], [["the dog"]])
    metric._scorer._model.encoder.register_forward_pre_hook(lambda module, ids: read.append(len(ids[0])))
    first = metric.score(predictions, references)
    texts = {text for text in [*predictions, *(t for group in references for t in group)] if text.strip()}
    before, read[:] = sum(read), []
    again = metric.score([prediction + " ran" for prediction in predictions], references)
    assert before <= len(texts)
    assert (sum(read) < len(predictions) + 5) == (memory_tokens == 2**18)
    assert metric.score(predictions, references) == [pytest.approx(score, abs=1e-6) for score in first]
    expected = bertscore_oracle(encoder, [p + " ran" for p in predictions[:-2]], references[:-2], num_layers=2)
    actual = [[score[key] for key in ("bertscore_precision", "bertscore_recall", "bertscore_f1")] for score in again]
    torch.testing.assert_close(torch.tensor(actual[:-2]), expected, atol=1e-5, rtol=0)


def test_the_layer_changes_bertscore(encoder):
    first, last = (BERTScore(encoder=encoder, num_layers=n).score(["a cat"], [["the dog sat"]]) for n in (1, 2))
    assert abs(first[0]["bertscore_f1"] - last[0]["bertscore_f1"]) > 1e-3
    assert BERTScore(encoder=encoder).score(["a cat"], [["the dog sat"]]) == last


def test_bertscore_takes_the_best_reference_for_each_key(encoder, random_texts):
    """Precision, recall and F1 may come from different references: what the package does."""
    metric = BERTScore(encoder=encoder)
    disagreements = 0
    for prediction, references in zip(*random_texts, strict=True):
        alone = metric.score([prediction] * len(references), [[text] for text in references])
        [both] = metric.score([prediction], [references])
        best = {key: max(alone, key=itemgetter(key)) for key in metric.keys}
        assert both == pytest.approx({key: best[key][key] for key in metric.keys}, abs=1e-5)
        disagreements += best["bertscore_precision"] is not best["bertscore_recall"]
    assert disagreements > 0


def test_bertscore_of_empty_texts(encoder):
    metric = BERTScore(encoder=encoder)
    same = metric.score(["cat"], [["cat"]])[0]
    assert same == pytest.approx(dict.fromkeys(metric.keys, 1.0), abs=1e-5)
    assert metric.score(["", " ", "cat"], [["cat"], ["cat"], ["", "\n"]]) == [dict.fromkeys(metric.keys, 0.0)] * 3
    assert metric.score(["cat"], [["", "cat"]])[0] == pytest.approx(same, abs=1e-6)


def test_bertscore_cuts_a_text_that_is_too_long(encoder):
    [score] = BERTScore(encoder=encoder).score(["cat " * 200], [["cat " * 300]])
    assert score == pytest.approx(dict.fromkeys(score, 1.0), abs=1e-5)


def test_bertscore_with_a_real_encoder():
    try:
        folder = embedded_folder("embedded:all-minilm-l6-v2")
    except RuntimeError as error:
        pytest.skip(f"the embedded encoder cannot be had here: {error}")
    predictions, references = real_texts("e2e_nlg", count=6)
    scores = BERTScore(encoder=folder).score([*predictions, "Stocks fell."], [*references, ["A cat sleeps."]])
    f1 = [score["bertscore_f1"] for score in scores]
    expected = bertscore_oracle(folder, predictions, references, num_layers=6)
    assert f1[:-1] == pytest.approx(expected[:, 2].tolist(), abs=1e-5)
    assert f1[-1] < min(f1[:-1])


# The state


def test_empty_texts_count_as_zero():
    rouge, bleu = ROUGE(), BLEU()
    for metric in (rouge, bleu):
        metric.update(["", "cat"], [["cat"], [""]])
        assert set(numbers(metric).values()) == {0.0}


def test_nothing_seen_is_nan(metric):
    metric.update([], [])
    assert all(math.isnan(value) for value in numbers(metric).values())
    assert len(numbers(metric)) == {"ROUGE": 3, "BLEU": 4, "BERTScore": 3}[type(metric).__name__]


def test_scores_in_equal_texts_in(metric, random_texts):
    predictions, references = random_texts
    by_scores = metric.clone()
    metric.update(predictions, references)
    scores = by_scores.score(predictions, references)
    assert by_scores.update_count == 0
    assert not by_scores.sums.any()
    by_scores.update_from_scores(scores[:10])
    first = numbers(by_scores)
    by_scores.update_from_scores(json.loads(json.dumps(scores[10:])))  # fit to be stored
    assert by_scores.update_count == 2
    assert numbers(by_scores) == pytest.approx(numbers(metric), abs=1e-12)
    assert numbers(by_scores) != first  # the computed value is not stale


def test_no_weights_in_the_module_tree(metric, random_texts):
    metric.update(*random_texts)
    holder = torch.nn.ModuleDict({"metric": metric})
    assert holder.state_dict() == {}
    assert list(holder.parameters()) == []
    assert list(holder.buffers()) == []
    assert list(holder.modules()) == [holder, metric]


def test_copies_go_on_alone_and_leave_the_encoder_behind(metric, random_texts):
    metric.update(*random_texts)
    before = numbers(metric)
    for other in (metric.clone(), pickle.loads(pickle.dumps(metric))):
        assert getattr(other, "_scorer", None) is None
        assert numbers(other) == before
        other.update(["the cat sat down on the house."], [["the cat sat down on the house."]])
        assert all(value > before[key] for key, value in numbers(other).items())
        assert numbers(metric) == before
    assert len(pickle.dumps(metric)) < 20_000


def test_reset_starts_again(metric, random_texts):
    metric.update(*random_texts)
    metric.reset()
    metric.update(["the cat sat down"], [["the cat sat down"]])
    assert numbers(metric) == pytest.approx(dict.fromkeys(numbers(metric), 1.0), abs=1e-5)


def test_forward_gives_the_batch_and_keeps_the_whole(metric, random_texts):
    whole = metric.clone()
    whole.update(["the cat sat down", *random_texts[0]], [["the cat sat down"], *random_texts[1]])
    batch = metric(["the cat sat down"], [["the cat sat down"]])
    assert {key: value.item() for key, value in batch.items()} == pytest.approx(dict.fromkeys(batch, 1.0), abs=1e-5)
    metric(*random_texts)
    assert numbers(metric) == pytest.approx(numbers(whole), abs=1e-6)


def test_states_are_replaced_never_changed_in_place(metric):
    """Under ddp_spawn the first states are memory shared by the processes: an in-place sum counts twice."""
    before = {name: getattr(metric, name) for name in metric._defaults}
    metric.update(["the cat"], [["the cat"]])
    for name, state in before.items():
        assert not state.any()
        assert getattr(metric, name).any()
        assert getattr(metric, name).data_ptr() != state.data_ptr()


def test_a_cast_of_the_module_keeps_the_sums_exact(metric, random_texts):
    metric.update(*random_texts)
    before = numbers(metric)
    metric._computed = None
    torch.nn.ModuleDict({"metric": metric}).to(torch.bfloat16)
    assert numbers(metric) == before


# Bad input


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        ("a cat", [["a cat"]], r"`predictions` must be a list .* got str: 'a cat'"),
        (["a cat"], "a cat", r"`references` must be a list .* got str: 'a cat'"),
        (["a cat"], ["a cat"], r"references of example 0 must be a list of strings, got str: 'a cat'"),
        (["a", "b"], [["a"]], r"same length, got 2 predictions and 1 lists of references"),
        (["a", "b"], [["a"], []], r"Example 1 has an empty list of references"),
        ([[3, 4]], [["a"]], r"Prediction 0 must be a string, got list: \[3, 4\]"),
        (["a"], [["a", None]], r"references of example 0 must be a list of strings"),
    ],
)
def test_bad_input_is_refused(metric, predictions, references, message):
    with pytest.raises(ValueError, match=message):
        metric.update(predictions, references)


@pytest.mark.parametrize("function", [rouge_scores, bleu_statistics])
def test_functions_refuse_bad_input(function):
    with pytest.raises(ValueError, match="must be a list of strings, got str"):
        function("a cat", "a cat")
    with pytest.raises(ValueError, match="empty list of references"):
        function("a cat", [])


def test_bleu_refuses_other_statistics():
    with pytest.raises(ValueError, match="must hold 10 integers, got 6"):
        bleu_from_statistics([1] * 6)


def test_tuples_are_lists_too(metric):
    metric.update(("the cat sat down",), (("a dog", "the cat sat down"),))
    assert numbers(metric) == pytest.approx(dict.fromkeys(numbers(metric), 1.0), abs=1e-5)


def test_a_missing_encoder_says_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"needs a local encoder folder .* has no config.json.*pip install"):
        BERTScore(encoder=tmp_path)


def test_more_layers_than_the_encoder_has(encoder):
    with pytest.raises(ValueError, match=r"`num_layers` must be from 0 to 2, .* got 3"):
        BERTScore(encoder=encoder, num_layers=3).update(["a"], [["a"]])


def test_a_path_that_bert_score_takes_for_t5(encoder, tmp_path):
    """bert_score 0.3.13 would load a randomly initialised T5 without an error."""
    folder = tmp_path / "at5b"
    shutil.copytree(encoder, folder)
    with pytest.raises(ValueError, match="path without 't5'"):
        BERTScore(encoder=folder).update(["a"], [["a"]])
