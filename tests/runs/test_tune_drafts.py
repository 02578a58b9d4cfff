"""`evaluate.py tune --lossless` on tiny models: what it predicts, measures, chooses, refuses and goes on with."""

import pytest
import torch
import yaml
from matplotlib.figure import Figure

import hsdlab.reporting.draft_tuning
from hsdlab import HSD, FullDepth, Verified
from hsdlab.costs import Cost
from hsdlab.modules.decode import DecodeModule
from hsdlab.records.draft_tuning import DraftTuningResult
from hsdlab.records.run_folder import prediction_file
from hsdlab.reporting.draft_tuning import summary
from hsdlab.runs import report
from hsdlab.runs.draft_options import DraftTuningOptions, check_draft_tuning, check_goal
from hsdlab.testing import tiny_model
from hsdlab.tuning import ReplayAgreement
from tests.runs.test_resume import without_times
from tests.tiny_checkpoints import TOKENS, save
from tests.tiny_runs import options, read_records, refusal, run, without_costs, write_examples

EXAMPLES, BATCHES, LAYERS = 10, 3, 6
SHORT = ("--classes=[StaticDepth]", "--trials=12", "--decodes=2", "--draft_lengths=[1,3]")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The options of a tiny run by model: "plain", and "trained", of whose layers only the lowest two do something."""
    folder = tmp_path_factory.mktemp("tiny")
    made = [*options(folder), "--model.num_beams=1", "--data.batch_size=4", "--model.max_new_tokens=8"]
    write_examples(folder / "data", EXAMPLES)
    model = tiny_model(num_layers=LAYERS, vocab_size=len(TOKENS), eos_token_id=1, bos_token_id=0)
    save(model, folder / "plain")
    with torch.no_grad():
        for layer in model.model.layers[2:]:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    save(model, folder / "trained")
    return {name: [*made, f"--model.name={folder / name}"] for name in ("plain", "trained")}


@pytest.fixture
def tune(tiny, monkeypatch, tmp_path):
    """Run the command into tmp_path/out, or another folder, and give the record that tuning.json holds."""

    def call(*args, folder="out", model="trained"):
        run(monkeypatch, "tune", "--lossless", *tiny[model], f"--output={tmp_path / folder}", *args)
        return DraftTuningResult.read(tmp_path / folder / "tuning.json")

    return call


@pytest.fixture
def no_picture(monkeypatch):
    """An empty picture, which is drawn sooner."""
    monkeypatch.setattr(hsdlab.reporting.draft_tuning, "draft_tuning_figure", lambda result: Figure(figsize=(1, 1)))


@pytest.fixture
def bytes_as_time(monkeypatch):
    """A decode step takes as long as the bytes that are read for it, whatever the machine does besides."""
    measured = Cost.figures

    def figures(self):
        return (made := measured(self)) | {"decode_step_ms": made["bytes_per_token"]}

    monkeypatch.setattr(Cost, "figures", figures)


@pytest.fixture
def counted(monkeypatch, no_picture):
    """Count the replays and note the decodes into a file; raise at the call of a number, if it is set."""
    calls = {"replays": 0, "decodes": [], "fail_at": {}}
    agreement, decode = ReplayAgreement.__call__, DecodeModule._decode

    def check(kind, number):
        if number == calls["fail_at"].get(kind):
            raise ConnectionError("cut short")

    def counting_agreement(self, *args):
        calls["replays"] += 1
        check("replays", calls["replays"])
        return agreement(self, *args)

    def counting_decode(self, batch, number):
        if self.predictions is not None:  # no warm-up
            calls["decodes"].append((number, self._run().strategy))
            check("decodes", len(calls["decodes"]))
        return decode(self, batch, number)

    monkeypatch.setattr(ReplayAgreement, "__call__", counting_agreement)
    monkeypatch.setattr(DecodeModule, "_decode", counting_decode)
    return calls


def check_accepted_as_predicted(prediction, row):
    """Of these drafts, keys, values and texts are full depth's: the layers above the second do nothing."""
    assert row.figure("acceptance_rate") == pytest.approx(prediction.acceptance_rate)
    assert row.figure("tokens_per_verification") == pytest.approx(prediction.tokens_per_verification)
    assert row.strategy.init_args["num_draft_tokens"] == prediction.num_draft_tokens


def test_the_fastest_draft_is_chosen_and_no_text_changes(tune, tmp_path, monkeypatch, capsys, bytes_as_time):
    found = tune("--classes=[StaticDepth]", "--trials=30", "--decodes=5", "--draft_lengths=[1,2,4]")
    out = tmp_path / "out"
    assert len(found.measured) == 5
    assert max(map([each.draft for each in found.measured].count, range(len(found.drafts)))) == 2
    speed_ups = [row.speed_up for row in found.rows]
    full = found.comparison.baseline.figure("bytes_per_token")
    assert speed_ups == [pytest.approx(full / row.figure("bytes_per_token")) for row in found.rows]
    assert found.chosen_row.speed_up == max(speed_ups) > 1
    assert [each.other_texts for each in found.measured] == [0] * 5
    for prediction, row in zip(found.predictions, found.rows, strict=True):
        check_accepted_as_predicted(prediction, row)

    expected = without_costs(read_records(out / "predictions" / "FullDepth.jsonl"))
    assert without_costs(read_records(out / "predictions" / "texts.jsonl")) == expected
    for row in found.rows:
        records = read_records(prediction_file(out, row.name))
        assert [each["token_ids"] for each in records] == [each["token_ids"] for each in expected]

    printed = " ".join(capsys.readouterr().out.split())
    assert "Searching: 30 settings" in printed
    assert "Draft 5 of 5: Verified(draft=StaticDepth(" in printed
    assert f"{found.chosen_row.name} is the fastest measured" in printed
    assert sorted(path.name for path in out.iterdir()) == [
        *(".hsdlab.written", "config.yaml", "drafts.png", "predictions", "run.json", "scores.jsonl", "strategy.yaml"),
        *("tuning.json", "tuning.md"),
    ]

    run(monkeypatch, "test", f"--config={out / 'strategy.yaml'}", f"--output={tmp_path / 'test'}")
    config = yaml.safe_load((tmp_path / "test" / "config.yaml").read_text(encoding="utf-8"))
    assert config["skip"]["class_path"] == "hsdlab.strategies.verified.Verified"
    assert config["skip"] == found.chosen_row.strategy.as_config()
    assert read_records(tmp_path / "test" / "predictions.jsonl")[0]["id"] == "test-0"


def test_a_draft_vocabulary_is_measured_and_accepted_as_predicted(tune, no_picture):
    found = tune(*SHORT, "--draft_vocabularies=[120]")
    assert len(found.rows) == 2
    for prediction, row in zip(found.predictions, found.rows, strict=True):
        check_accepted_as_predicted(prediction, row)
        assert row.strategy.init_args["draft_vocabulary"] == 120


def test_each_batch_is_decoded_by_all_drafts_in_turn(tune, counted):
    found = tune(*SHORT)
    texts, turns = counted["decodes"][:BATCHES], counted["decodes"][BATCHES:]
    assert [type(strategy) for _, strategy in texts] == [FullDepth] * BATCHES
    names = [repr(FullDepth()), *(row.name for row in found.rows)]
    assert [(number, repr(strategy)) for number, strategy in turns] == [
        (batch, names[(batch + turn) % 3]) for batch in range(BATCHES) for turn in range(3)
    ]
    assert all(row.speed_up_interval is not None for row in found.rows)


def test_a_model_that_was_not_trained_to_skip_falls_back_to_full_depth(tune, bytes_as_time, capsys, tmp_path):
    found = tune(*SHORT, model="plain")
    assert [row.speed_up < 1 for row in found.rows] == [True, True]
    assert found.chosen is None
    closest = max(found.rows, key=lambda row: row.speed_up)
    expected = f"No draft pays on this model: take full depth. The closest, {closest.name}, is {closest.speed_up:.2f}×"
    assert summary(found).startswith(expected)
    assert expected in " ".join(capsys.readouterr().out.split())
    assert "No draft was predicted to be faster than full depth" in (tmp_path / "out" / "tuning.md").read_text("utf-8")
    config = yaml.safe_load((tmp_path / "out" / "strategy.yaml").read_text(encoding="utf-8"))
    assert config["skip"]["class_path"].rpartition(".")[2] == "FullDepth"


@pytest.mark.slow  # test_tune.py has the same of the other search
def test_a_run_cut_short_goes_on_and_does_nothing_twice(tune, counted, bytes_as_time, tmp_path):
    whole = tune(*SHORT, folder="whole")
    total = {"replays": counted["replays"], "decodes": len(counted["decodes"])}
    for kind, number in (("replays", 3), ("decodes", 7)):  # in the search, and in the second batch of the measurement
        counted |= {"replays": 0, "decodes": [], "fail_at": {kind: number}}
        with pytest.raises(ConnectionError):
            tune(*SHORT, folder=kind)
        assert not (tmp_path / kind / "strategy.yaml").exists()
        counted["fail_at"] = {}
        again = tune(*SHORT, folder=kind)
        done = {"replays": counted["replays"], "decodes": len(counted["decodes"])}
        assert done == {name: total[name] + (name == kind) for name in total}
        assert without_times(again) == without_times(whole)


@pytest.mark.slow
def test_other_lengths_take_over_what_was_replayed(tune, counted):
    tune(*SHORT)
    counted |= {"replays": 0, "decodes": []}
    found = tune(*SHORT, "--draft_lengths=[2,4]", "--decodes=1")
    assert counted["replays"] == 0
    assert len(counted["decodes"]) <= BATCHES
    assert {each.num_draft_tokens for each in found.drafts[0].predictions} == {2, 4}


@pytest.mark.slow  # tests/reporting/test_draft_tuning.py reads the record and draws it
def test_the_report_is_drawn_again(tune, tmp_path):
    found = tune(*SHORT)
    (tmp_path / "out" / "tuning.md").unlink()
    (tmp_path / "out" / "drafts.png").unlink()
    assert report(tmp_path / "out").to_json() == found.to_json()
    assert {"tuning.md", "drafts.png"} <= {path.name for path in (tmp_path / "out").iterdir()}


def test_a_run_for_quality_is_not_resumed_with_drafts(tune, no_picture, tiny, monkeypatch, tmp_path):
    tune(*SHORT)
    with pytest.raises(FileExistsError, match="lossless: True then, False now"):
        run(monkeypatch, "tune", "--max-loss=0.1", *tiny["trained"], *SHORT[:2], f"--output={tmp_path / 'out'}")


def test_a_setting_whose_prompt_skips_is_refused_before_anything_is_written(tune, counted, tmp_path):
    skips = "{class_path: HSD, init_args: {max_exit: 4, prompt_min_exit: 0, prompt_max_exit: 2}}"
    with pytest.raises(ValueError, match="skips layers in the prompt"):
        tune(*SHORT, f"--first=[{skips}]")
    assert not (tmp_path / "out").exists()


@pytest.fixture
def refused(tiny, monkeypatch, tmp_path, capsys):
    return lambda *args: refusal(monkeypatch, capsys, tmp_path / "out", "tune", *tiny["plain"], *args)


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--lossless", "--max-loss=0.1"], "Got --lossless and --max-loss=0.1: expected one of them"),
        (["--lossless", "--model.num_beams=4"], "--lossless needs --model.num_beams=1"),
        (["--lossless", "--draft-lengths=[0]"], "draft_lengths"),
        (["--lossless=false"], "Got neither; expected one of --max-loss"),
        (["--max-loss=0.1", "--draft-lengths=[3]"], "draft_lengths=[3] is for --lossless, which is not given"),
    ],
)
def test_what_cannot_end_well_is_refused_before_the_model_is_loaded(args, expected, refused):
    assert expected in refused(*args)


def test_a_draft_vocabulary_beyond_the_model_is_refused(tune, counted, tmp_path):
    with pytest.raises(ValueError, match="draft_vocabulary=9999; this model has"):
        tune(*SHORT, "--draft_vocabularies=[null,9999]")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("given", "decoding", "expected"),
    [
        ({}, {"num_beams": 2}, "num_beams=2: beam search compares all beams"),
        ({}, {"generate_kwargs": {"do_sample": True}}, "do_sample=True, and replay can predict"),
        ({}, {"compile": True}, "compile=True: verified drafts cannot be compiled"),
        ({"lengths": []}, {}, r"draft_lengths=\[\]: expected one value or more, each once"),
        ({"lengths": [2, 2]}, {}, r"draft_lengths=\[2,2\]: expected"),
        ({"lengths": [0]}, {}, "num_draft_tokens=0; expected a whole number"),
        ({"vocabularies": [None, None]}, {}, r"draft_vocabularies=\[null,null\]: expected"),
        ({"vocabularies": [0]}, {}, "draft_vocabulary=0; expected a whole number"),
        ({"classes": ["CALM"]}, {}, "replay scores layers that are known before a step"),
        ({"first": [HSD(1), HSD(2)], "trials": 1}, {}, "first lists 2 settings and trials=1"),
        ({"first": [Verified(HSD(1))]}, {}, "has no layers that are known before a step"),
    ],
)
def test_what_the_errors_say(given, decoding, expected):
    fitting = {"num_beams": 1, "generate_kwargs": None, "compile": False}
    rest = {"max_new_tokens": 2, "examples": ["a", "b"]}
    check_draft_tuning(DraftTuningOptions(), decoding=fitting, **rest)
    with pytest.raises(ValueError, match=expected):
        check_draft_tuning(DraftTuningOptions(**given), decoding=fitting | decoding, **rest)


def test_goals_that_exclude_each_other():
    check_goal(True, None, None, [3], [None, 9])
    check_goal(False, 0.1, None)
    with pytest.raises(ValueError, match=r"Got --lossless and --max-loss=0.1 and --speedup=2: expected one"):
        check_goal(True, 0.1, 2.0)
    with pytest.raises(ValueError, match=r"draft_vocabularies=\[null,9\] is for --lossless"):
        check_goal(False, 0.1, None, vocabularies=[None, 9])
