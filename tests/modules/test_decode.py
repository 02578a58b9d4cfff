"""DecodeModule: its records against the model decoded by hand, its logs against the metrics."""

import json

import pytest
import torch
from lightning.pytorch import Trainer

from hsdlab import CALM, HSD, FullDepth, SubLayerStrategy, Verified, generate
from hsdlab.data import JSONLines
from hsdlab.decoding import compiled
from hsdlab.decoding.cost import decode_cost
from hsdlab.errors import UserError
from hsdlab.metrics import BLEU, ROUGE, bleu_statistics, rouge_scores
from hsdlab.modules import DecodeModule, text_metrics
from hsdlab.records.layer_ranges import layer_ranges
from hsdlab.runs.rehearsal import rehearse
from tests.tiny_checkpoints import tiny_llama, tiny_tokenizer
from tests.tiny_runs import EXAMPLES, read_records, without_costs, write_examples

STRATEGY = HSD(num_skipped=1, min_exit=0, max_exit=2)


@pytest.fixture
def data(tmp_path):
    return JSONLines(folder=str(write_examples(tmp_path / "data")), batch_size=2)


def module(**options):
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    model = tiny_llama()
    with torch.no_grad():
        model.lm_head.weight[1] *= 3  # sentences end, at different steps
    return DecodeModule(
        model, tokenizer, **{"max_new_tokens": 8, "num_beams": 2, "metrics": ("rouge", "bleu"), **options}
    )


def trainer(*callbacks):
    return Trainer(
        accelerator="cpu",
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


@pytest.mark.parametrize("num_beams", [1, 2])
def test_records_are_those_of_each_example_decoded_by_hand(num_beams, data, tmp_path):
    decoder = module(num_beams=num_beams, predictions=str(tmp_path / "new" / "predictions.jsonl"))
    trainer(STRATEGY).test(decoder, datamodule=data, verbose=False)
    records = read_records(tmp_path / "new" / "predictions.jsonl")
    examples = data.examples("test")
    assert [record["id"] for record in records] == [example.id for example in examples]
    assert len({record["new_tokens"] for record in records}) > 1  # else the ends of rows are not tested
    for position, (record, example) in enumerate(zip(records, examples, strict=True)):
        ids = torch.tensor([data.template.encode(example.source, decoder.tokenizer)[0]])
        output = generate(
            decoder.model, input_ids=ids, strategy=STRATEGY, max_new_tokens=8, num_beams=num_beams, pad_token_id=1
        )
        new = output.sequences[0, ids.shape[1] :]
        steps = int(output.trace.live.sum())
        text = decoder.tokenizer.decode(new, skip_special_tokens=True).strip()
        references = list(example.references)
        assert set(record["batch"]) == {"number", "rows", "cost"}
        assert set(record["batch"]["cost"]) == set(vars(decode_cost(decoder.model, output)))
        assert record["schema_version"] == 2
        assert without_costs([record]) == [
            {
                "id": example.id,
                "source": example.source,
                "prediction": text,
                "references": references,
                "new_tokens": steps + 1,
                "token_ids": new[: steps + 1].tolist(),
                "tokens": [decoder.tokenizer.decode(token) for token in new[: steps + 1].tolist()],
                "decode_steps": steps,
                "average_layers": pytest.approx(output.trace.average_layers) if steps else None,
                "layers": [layer_ranges(STRATEGY.layers_at(step, 3, max_steps=8)) for step in range(steps)],
                "scores": rouge_scores(text, references),
                "bleu_statistics": bleu_statistics(text, references),
                "position": position,
                "drafts": [],
            }
        ]


def test_records_of_sub_layers(data, tmp_path):
    decoder = module(predictions=str(tmp_path / "predictions.jsonl"))
    strategy = SubLayerStrategy([1], [1, 2])
    (logged,) = trainer(strategy).test(decoder, datamodule=data, verbose=False)
    records = read_records(tmp_path / "predictions.jsonl")
    assert {ranges for record in records for ranges in record["layers"]} == {"0,2a"}
    assert {record["average_layers"] for record in records} <= {1.5, None}
    assert logged["test/average_layers"] == 1.5
    costs = [record["batch"]["cost"] for record in records]
    assert all(cost["executed_layers"] == 1.5 * cost["decode_steps"] for cost in costs)


@pytest.mark.parametrize(("stage", "prefix"), [("test", "test"), ("validate", "val")])
def test_logs_are_the_corpus_figures_of_the_records(stage, prefix, data, tmp_path):
    decoder = module(predictions=str(tmp_path / "predictions.jsonl"))
    (logged,) = getattr(trainer(STRATEGY), stage)(decoder, datamodule=data, verbose=False)
    records = read_records(tmp_path / "predictions.jsonl")
    texts = [record["prediction"] for record in records], [record["references"] for record in records]
    expected = {}
    for metric in (ROUGE(), BLEU()):
        metric.update(*texts)
        expected |= metric.compute()
    assert len(records) == EXAMPLES
    assert {name: logged[f"{prefix}/{name}"] for name in expected} == pytest.approx(
        {name: float(value) for name, value in expected.items()}
    )
    steps = sum(record["decode_steps"] for record in records)
    depth = sum(record["decode_steps"] * record["average_layers"] for record in records if record["decode_steps"])
    assert logged[f"{prefix}/average_layers"] == pytest.approx(depth / steps)


def test_a_second_run_starts_anew(data, tmp_path):
    decoder = module(predictions=str(tmp_path / "predictions.jsonl"))
    runs = []
    for _ in range(2):
        (logged,) = trainer(STRATEGY).test(decoder, datamodule=data, verbose=False)
        runs.append(
            (
                {name: logged[name] for name in logged if "rouge" in name or "bleu" in name},
                without_costs(read_records(tmp_path / "predictions.jsonl")),
            )
        )
    assert runs[0] == runs[1]


def decoded(decoder, monkeypatch):
    """Note the numbers of the batches that are decoded from now on."""
    numbers = []
    decode = type(decoder)._decode
    monkeypatch.setattr(
        decoder, "_decode", lambda batch, number: numbers.append(number) or decode(decoder, batch, number)
    )
    return numbers


def lines_as_decoded(file):
    """The lines of a finished file in the order in which they were appended: batch after batch."""
    return sorted(file.read_bytes().splitlines(keepends=True), key=lambda line: json.loads(line)["batch"]["number"])


@pytest.mark.parametrize("generate_kwargs", [{}, {"do_sample": True, "temperature": 3.0}])
@pytest.mark.parametrize("kept", [0, 2, 3, 4, 5], ids="{} lines kept".format)
def test_a_resumed_run_ends_as_an_uninterrupted_one(kept, generate_kwargs, data, tmp_path, monkeypatch):
    file = tmp_path / "predictions.jsonl"
    options = {"num_beams": 1, "generate_kwargs": generate_kwargs, "predictions": str(file)}
    torch.manual_seed(3)
    (whole,) = trainer(STRATEGY).test(module(**options), datamodule=data, verbose=False)
    records, lines = read_records(file), lines_as_decoded(file)
    file.write_bytes(b"".join(lines[:kept]) + (lines[kept][:40] if kept < 5 else b""))

    torch.manual_seed(3)
    decoder = module(**options)
    decoder.resume = True
    numbers = decoded(decoder, monkeypatch)
    (resumed,) = trainer(STRATEGY).test(decoder, datamodule=data, verbose=False)
    assert numbers == {0: [0, 1, 2], 2: [1, 2], 3: [1, 2], 4: [2], 5: []}[kept]
    assert without_costs(read_records(file)) == without_costs(records)
    times = ("step_ms", "prompt_ms", "per_second")
    assert {name: resumed[name] for name in resumed if not name.endswith(times)} == pytest.approx(
        {name: whole[name] for name in whole if not name.endswith(times)}
    )
    if kept == 5:
        assert resumed == whole  # the times too


def test_a_resumed_predict_returns_all_records(data, tmp_path):
    file = tmp_path / "predictions.jsonl"
    decoder = module(predictions=str(file))
    decoder.resume = True
    trainer(STRATEGY).predict(decoder, datamodule=data)
    lines = lines_as_decoded(file)
    file.write_bytes(b"".join(lines[:2]))
    batches = trainer(STRATEGY).predict(decoder, datamodule=data)
    records = [record for batch in batches for record in batch]
    assert without_costs(records) == without_costs(map(json.loads, lines))


def test_predictions_for_other_examples_are_refused(data, tmp_path):
    decoder = module(predictions=str(tmp_path / "predictions.jsonl"))
    trainer(STRATEGY).test(decoder, datamodule=data, verbose=False)
    decoder.resume = True
    other = JSONLines(folder=data.folder, batch_size=3)
    with pytest.raises(ValueError, match="example 'test-4' has other texts, has moved"):
        trainer(STRATEGY).test(decoder, datamodule=other, verbose=False)


def test_predict_returns_the_records_that_it_writes(data, tmp_path):
    decoder = module(predictions=str(tmp_path / "predictions.jsonl"))
    batches = trainer(STRATEGY).predict(decoder, datamodule=data)
    records = read_records(tmp_path / "predictions.jsonl")
    written = [{name: value for name, value in record.items() if name != "hash"} for record in records]
    returned = sorted((record for batch in batches for record in batch), key=lambda record: record["position"])
    assert [record | {"schema_version": 2} for record in returned] == written


def test_predictions_of_finished_batches_are_on_disk_when_a_later_one_fails(data, tmp_path, monkeypatch):
    decoder = module(predictions=str(tmp_path / "predictions.jsonl"))
    step, calls = decoder._decode, []

    def fail_at_third(batch, number):
        calls.append(batch)
        if len(calls) == 3:
            raise OSError("the disk is full")
        return step(batch, number)

    monkeypatch.setattr(decoder, "_decode", fail_at_third)
    with pytest.raises(OSError, match="the disk is full"):
        trainer(STRATEGY).test(decoder, datamodule=data, verbose=False)
    assert len(read_records(tmp_path / "predictions.jsonl")) == 4


def test_without_a_file_nothing_is_written(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    trainer(STRATEGY).test(module(), datamodule=data, verbose=False)
    assert sorted(tmp_path.rglob("*")) == before


def test_without_a_strategy_the_error_says_what_to_add(data):
    with pytest.raises(RuntimeError, match=r"callbacks=\[FullDepth\(\)\]"):
        trainer().test(module(), datamodule=data, verbose=False)


def test_generate_kwargs_reach_generate(data, tmp_path):
    options = {"max_new_tokens": 8, "num_beams": 1, "predictions": str(tmp_path / "predictions.jsonl")}
    texts = []
    for generate_kwargs in ({"eos_token_id": None}, {"eos_token_id": None, "do_sample": True, "temperature": 5.0}):
        trainer(FullDepth()).test(module(generate_kwargs=generate_kwargs, **options), datamodule=data, verbose=False)
        records = read_records(tmp_path / "predictions.jsonl")
        assert {record["new_tokens"] for record in records} == {8}
        texts.append(json.dumps(records))
    assert texts[0] != texts[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens=0: expected a whole number, 1 or more"),
        ({"num_beams": 0}, "num_beams=0: expected a whole number, 1 or more"),
        ({"metrics": ["meteor"]}, "'meteor': expected some of rouge, bleu, bertscore"),
        ({"generate_kwargs": {"num_beams": 2}}, "give it as the parameter num_beams"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        module(**options)


def test_bertscore_takes_an_embedded_encoder_by_name(monkeypatch, tmp_path):
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    monkeypatch.setattr(text_metrics, "embedded_folder", {"embedded:all-minilm-l6-v2": tmp_path}.__getitem__)
    assert module(metrics=["bertscore"]).metrics["bertscore"].encoder == str(tmp_path)


@pytest.fixture
def not_compiled(monkeypatch):
    """``compile=True`` runs the same steps, without torch's compiler."""
    monkeypatch.setattr(compiled, "_compiled", lambda function, backend: function)


@pytest.mark.parametrize("num_beams", [1, 2])
def test_compiled_steps_give_the_same_records(num_beams, data, tmp_path, not_compiled):
    records = []
    for name, compile in (("steps", False), ("compiled", True)):
        decoder = module(num_beams=num_beams, predictions=str(tmp_path / name), compile=compile)
        trainer(STRATEGY).test(decoder, datamodule=data, verbose=False)
        records.append(read_records(tmp_path / name))
    assert without_costs(records[0]) == without_costs(records[1])
    assert [record["batch"]["cost"]["warmup_s"] for record in records[0]] == [0] * EXAMPLES
    assert records[1][0]["batch"]["cost"]["warmup_s"] > 0


def test_the_record_of_a_run_says_that_steps_are_compiled():
    assert module(compile=True).generation().record()["options"]["compile"] is True
    assert "compile" not in module().generation().record()["options"]


def test_what_cannot_be_compiled_is_refused_before_anything_is_decoded(not_compiled):
    decoder = module(compile=True)
    rehearse(decoder, [1, 2, 3], [STRATEGY, FullDepth()])
    assert decoder.model not in compiled._workspaces  # a rehearsal does not wait for a compiler
    with pytest.raises(UserError, match="compile=True: CALM chooses layers while it decodes"):
        rehearse(decoder, [1, 2, 3], [FullDepth(), CALM()])


def test_verified_drafts_give_the_text_of_full_depth_and_are_in_the_records(data, tmp_path):
    texts = {}
    for name, strategy in (("full", FullDepth()), ("verified", Verified(STRATEGY, 3))):
        file = tmp_path / f"{name}.jsonl"
        trainer(strategy).test(module(num_beams=1, predictions=str(file)), datamodule=data, verbose=False)
        texts[name] = read_records(file)
    for full, verified in zip(texts["full"], texts["verified"], strict=True):
        assert verified["token_ids"] == full["token_ids"]
        assert verified["layers"] == full["layers"]
        assert full["drafts"] == []
        assert sum(accepted for _, accepted in verified["drafts"]) <= verified["decode_steps"]
        assert bool(verified["drafts"]) == (verified["decode_steps"] > 0)
    assert {"acceptance_rate", "tokens_per_verification"} <= strategy.efficiency.keys()


def test_verified_drafts_and_beams_are_refused_before_the_first_batch(data):
    with pytest.raises(UserError, match="Beam search"):
        trainer(Verified(STRATEGY)).test(module(num_beams=2), datamodule=data, verbose=False)
