"""`evaluate.py tune` on a tiny model: what it searches, decodes, writes, refuses and goes on with."""

import json

import pytest
import yaml
from matplotlib.figure import Figure

import hsdlab.modules.decode
import hsdlab.reporting.tuning
from hsdlab import HSD, SkipDecode, StaticDepth
from hsdlab.costs import Cost
from hsdlab.metrics import rouge_scores
from hsdlab.modules.decode import DecodeModule
from hsdlab.records.run_folder import prediction_file
from hsdlab.records.tuning import TuningResult
from hsdlab.reporting.tuning import summary
from hsdlab.runs.tunable import check_tuning
from hsdlab.testing import tiny_model
from hsdlab.tuning import ReplayScore
from tests.runs.test_resume import without_times
from tests.tiny_checkpoints import TOKENS, save
from tests.tiny_runs import options, read_records, refusal, run, without_costs, write_examples

EXAMPLES, LAYERS = 10, 6
GOAL = "--max-loss=0.05"
SHORT = ("--metric=rouge1", "--trials=15", "--decodes=2")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The options of a tiny run; the references of the validation split are full depth's own texts."""
    folder = tmp_path_factory.mktemp("tiny")
    made = [*options(folder), "--model.num_beams=1", "--data.batch_size=4", "--model.max_new_tokens=8"]
    write_examples(folder / "data", EXAMPLES)
    save(tiny_model(num_layers=LAYERS, vocab_size=len(TOKENS), eos_token_id=1, bos_token_id=0), folder / "model")
    with pytest.MonkeyPatch.context() as monkeypatch:
        run(monkeypatch, "validate", *made, f"--output={folder / 'full'}")
    records = read_records(folder / "full" / "predictions.jsonl")
    examples = [{"id": r["id"], "source": r["source"], "references": [r["prediction"] or "nothing"]} for r in records]
    (folder / "data" / "validation.jsonl").write_text("\n".join(map(json.dumps, examples)), encoding="utf-8")
    return made


@pytest.fixture
def tune(tiny, monkeypatch, tmp_path):
    """Run the command into tmp_path/out, or another folder, and give the record that tuning.json holds."""

    def call(*args, folder="out"):
        run(monkeypatch, "tune", *tiny, f"--output={tmp_path / folder}", *args)
        return TuningResult.read(tmp_path / folder / "tuning.json")

    return call


@pytest.fixture
def no_picture(monkeypatch):
    """An empty picture, which is drawn sooner."""
    monkeypatch.setattr(hsdlab.reporting.tuning, "tuning_figure", lambda report: Figure(figsize=(1, 1)))


@pytest.fixture
def layers_as_time(monkeypatch):
    """A decode step takes a millisecond a layer, whatever the machine does besides."""
    measured = Cost.figures

    def figures(self):
        return (made := measured(self)) | {"decode_step_ms": made["average_layers"]}

    monkeypatch.setattr(Cost, "figures", figures)


@pytest.fixture
def counted(monkeypatch, no_picture):
    """Count the replays, and the batches that are decoded into a file; raise at the call of a number, if it is set."""
    calls = {"replays": 0, "decodes": 0, "fail_at": {}}
    score, decode = ReplayScore.__call__, DecodeModule._decode

    def count(kind):
        calls[kind] += 1
        if calls[kind] == calls["fail_at"].get(kind):
            raise ConnectionError("cut short")

    def counting_score(self, schedule):
        count("replays")
        return score(self, schedule)

    def counting_decode(self, batch, number):
        if self.predictions is not None:  # no warm-up
            count("decodes")
        return decode(self, batch, number)

    monkeypatch.setattr(ReplayScore, "__call__", counting_score)
    monkeypatch.setattr(DecodeModule, "_decode", counting_decode)
    return calls


def made(strategy):
    """The strategy that a config names."""
    return getattr(hsdlab, strategy.class_name)(**strategy.init_args)


def rouge1(file):
    records = read_records(file)
    return sum(rouge_scores(record["prediction"], record["references"])["rouge1"] for record in records) / len(records)


def test_the_fastest_that_keeps_enough_of_the_quality(tune, tmp_path, monkeypatch, capsys, layers_as_time):
    whole = "--classes=[HSD, SkipDecode, StaticDepth]"
    report = tune("--max-loss=0.5", "--metric=rouge1", "--trials=30", "--decodes=4", "--seed_everything=3", whole)
    out = tmp_path / "out"
    decoded = report.rows.values()
    assert len(decoded) == 4
    full = rouge1(out / "predictions" / "FullDepth.jsonl")
    assert report.comparison.baseline.quality["rouge1"].value == pytest.approx(full)
    files = [prediction_file(out, each.name) for each in decoded]
    assert {file.name for file in files} | {"FullDepth.jsonl"} == {
        path.name for path in (out / "predictions").iterdir()
    }
    shares = {each.name: rouge1(file) / full for each, file in zip(decoded, files, strict=True)}
    for each in decoded:
        assert each.percent_of_baseline["rouge1"].value == pytest.approx(100 * shares[each.name])
    verdicts = {report.rows[each.place].name: each.met_goal for each in report.decoded}
    assert verdicts == {name: share >= 0.5 for name, share in shares.items()}
    assert report.chosen_row.name == [name for name in shares if shares[name] >= 0.5][-1]  # slowest first
    assert {False, True} == set(verdicts.values())
    assert {record["id"].partition("-")[0] for record in read_records(files[0])} == {"validation"}

    printed = " ".join(capsys.readouterr().out.split())
    assert "Searching: 30 settings" in printed
    assert "Setting 4 of at most 4" in printed
    assert f"{report.chosen_row.name} is the fastest decoded that keeps 50 % or more of full depth's ROUGE-1" in printed
    assert sorted(path.name for path in out.iterdir()) == [
        *(".hsdlab.written", "config.yaml", "frontier.png", "predictions", "run.json", "scores.jsonl", "strategy.yaml"),
        *("tuning.json", "tuning.md"),
    ]

    run(monkeypatch, "test", f"--config={out / 'strategy.yaml'}", f"--output={tmp_path / 'test'}")
    config = yaml.safe_load((tmp_path / "test" / "config.yaml").read_text(encoding="utf-8"))
    assert config["skip"] == report.chosen_row.strategy.as_config()
    asked = yaml.safe_load((out / "config.yaml").read_text(encoding="utf-8"))
    assert {name: config[name] for name in ("model", "data", "trainer")} == {
        name: asked[name] for name in ("model", "data", "trainer")
    }
    assert config["seed_everything"] == 3
    assert read_records(tmp_path / "test" / "predictions.jsonl")[0]["id"] == "test-0"


def test_the_best_that_is_fast_enough_and_nothing_too_slow_is_replayed(tune, counted, layers_as_time, tmp_path):
    report = tune("--speedup=1.5", "--metric=bleu1", "--trials=30", "--decodes=3", "--classes=[SkipDecode]")
    scored = [each for each in report.settings if each.nats_per_token is not None]
    assert 0 < len(scored) < len(report.settings)
    assert {each.ideal_speed_up >= 1.5 for each in scored} == {True}
    assert {each.ideal_speed_up < 1.5 for each in report.settings if each not in scored} == {True}
    assert counted["replays"] == len(scored) + 1  # and full depth
    assert counted["replays"] == len((tmp_path / "out" / "scores.jsonl").read_text(encoding="utf-8").splitlines())
    steps = [
        step for r in read_records(tmp_path / "out/predictions/FullDepth.jsonl") for step in range(r["decode_steps"])
    ]
    for each in report.settings:
        depths = [len(made(each.strategy).layers_at(step, LAYERS, max_steps=8)) for step in steps]
        assert each.average_layers == pytest.approx(sum(depths) / len(depths))
    decoded = report.rows.values()
    assert counted["decodes"] == 3 * (len(decoded) + 1)  # of three batches each
    fast = [each for each in decoded if LAYERS / each.average_layers >= 1.5]
    best = max(each.quality["bleu1"].value for each in fast)
    (chosen,) = [each for each in fast if each is report.chosen_row]
    assert chosen.quality["bleu1"].value == best
    assert "is the best decoded that is 1.5× as fast" in summary(report)
    assert {each.strategy.class_name for each in report.settings} == {"SkipDecode"}


def test_settings_that_are_given_are_tried_before_any_is_proposed(tune, no_picture):
    given = yaml.safe_dump([HSD(2, 0, 3).config(), SkipDecode(1, 4).config()], default_flow_style=True, width=1000)
    report = tune(GOAL, *SHORT, f"--first={given}", "--classes=[StaticDepth]")
    first, second, *others = [made(each.strategy) for each in report.settings]
    assert (repr(first), repr(second)) == (repr(HSD(2, 0, 3)), repr(SkipDecode(1, 4)))
    assert {type(each) for each in others} == {StaticDepth}


def test_a_setting_that_does_not_fit_the_model_is_refused(tune, counted, tmp_path):
    with pytest.raises(ValueError, match="max_exit=7"):
        tune(GOAL, "--first=[{class_path: HSD, init_args: {max_exit: 7}}]")
    assert counted == counted | {"replays": 0, "decodes": 0}


def test_a_speed_up_that_no_schedule_allows_decodes_nothing_and_full_depth_is_chosen(tune, counted, tmp_path):
    report = tune("--speedup=50", *SHORT)
    assert report.frontier == ()
    assert summary(report).startswith("No setting tried can be 50× as fast as full depth or more, the most is ")
    assert (counted["replays"], counted["decodes"]) == (1, 3)
    config = yaml.safe_load((tmp_path / "out" / "strategy.yaml").read_text(encoding="utf-8"))
    assert config["skip"] == report.chosen_row.strategy.as_config()
    assert config["skip"]["class_path"].rpartition(".")[2] == "FullDepth"


def test_a_run_cut_short_goes_on_and_does_nothing_twice(tune, counted, layers_as_time, tmp_path):
    whole = tune("--max-loss=0.4", *SHORT, folder="whole")
    total = {kind: counted[kind] for kind in ("replays", "decodes")}
    for kind, number in (("replays", 6), ("decodes", 8)):  # in the search, and in the second batch of the last file
        counted |= {"replays": 0, "decodes": 0, "fail_at": {kind: number}}
        with pytest.raises(ConnectionError):
            tune("--max-loss=0.4", *SHORT, folder=kind)
        assert not (tmp_path / kind / "strategy.yaml").exists()
        counted["fail_at"] = {}
        again = tune("--max-loss=0.4", *SHORT, folder=kind)
        assert {name: counted[name] for name in total} == {name: total[name] + (name == kind) for name in total}
        assert without_times(again) == without_times(whole)
        for file in (tmp_path / "whole" / "predictions").iterdir():
            expected, records = (read_records(path) for path in (file, tmp_path / kind / "predictions" / file.name))
            assert without_costs(records) == without_costs(expected)


@pytest.mark.slow
def test_another_question_takes_over_what_was_scored_and_decoded(tune, counted, layers_as_time, capsys):
    first = tune("--max-loss=0.4", *SHORT)
    counted |= {"replays": 0, "decodes": 0}
    capsys.readouterr()
    second = tune("--max-loss=0.5", "--metric=bleu1", "--trials=16", "--decodes=1")
    assert "30 predictions are done" in capsys.readouterr().out
    assert counted["replays"] <= 1
    assert counted["decodes"] <= 3
    assert second.run.config["max_loss"] == 0.5
    assert {each.name for each in first.settings} <= {each.name for each in second.settings}
    with pytest.raises(FileExistsError, match="examples: 32 then, 4 now"):
        tune("--max-loss=0.4", *SHORT, "--examples=4")


@pytest.fixture
def refused(tiny, monkeypatch, tmp_path, capsys):
    return lambda *args: refusal(monkeypatch, capsys, tmp_path / "out", "tune", *tiny, *args)


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ([], "Got neither; expected one of --max-loss"),
        ([GOAL, "--classes=[CALM]"], "CALM is no ScheduledStrategy"),
        ([GOAL, "--metric=bertscore_f1"], "computed by bertscore, which is not in model.metrics=[rouge, bleu]"),
        ([GOAL, "--trials=0"], "trials"),
        ([GOAL, "--first=[CALM]"], "CALM(threshold=0.9) has no layers that are known before a step"),
        ([GOAL, "--first=[HSD, HSD]"], "HSD(num_skipped=1, min_exit=0) is listed 2 times"),
        ([GOAL, "--skip=HSD"], "skip"),
    ],
)
def test_what_cannot_end_well_is_refused_before_the_model_is_loaded(args, expected, refused):
    assert expected in refused(*args)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"speedup": 2.0}, "Got max-loss=0.05 and speedup=2; expected one of"),
        ({"max_loss": 1.5}, "max-loss=1.5: expected a share"),
        ({"max_loss": None, "speedup": 0.9}, "speedup=0.9: expected a number above 1"),
        ({"max_loss": None, "speedup": float("inf")}, "speedup=inf: expected a number above 1, and finite"),
        ({"max_loss": float("nan")}, "max-loss=nan: expected a share"),
        ({"classes": ["CALM"]}, "replay scores layers that are known before a step: expected some of HSD"),
        ({"classes": ["hsdlab.Compose"]}, "hsdlab.Compose is no ScheduledStrategy"),
        ({"classes": ["FullDepth"]}, "FullDepth does not say which settings to try"),
        ({"classes": ["tests.runs.test_resume.Slow"]}, "Slow does not say which settings to try"),
        ({"classes": ["HDS"]}, "unknown class 'HDS'; expected some of HSD, SkipDecode, StaticDepth, SubLayerStrategy"),
        ({"classes": ["no_such.Class"]}, "unknown class 'no_such.Class'"),
        ({"classes": ["json.dumps"]}, "json.dumps is part of Python itself"),
        ({"classes": ["HSD", "hsdlab.HSD"]}, "classes lists HSD 2 times"),
        ({"classes": []}, "classes is empty"),
        ({"first": [HSD(1), HSD(2)], "trials": 1}, "first lists 2 settings and trials=1: give as many trials"),
        ({"metric": "meteor"}, "metric=meteor; expected one of rouge1, .*, bleu4"),
        ({"metric": "exact_match"}, "metric=exact_match; expected one of"),
        ({"max_new_tokens": 1}, "max_new_tokens=1: there is no decode step to skip layers in"),
        ({"examples": ["a", "b", "a"]}, "2 validation examples have the id 'a'"),
    ],
)
def test_what_the_errors_say(given, expected):
    options = {"classes": ["HSD", "hsdlab.SkipDecode"], "max_loss": 0.05, "speedup": None, "metric": "bleu4"}
    options |= {"computed": ["bleu"], "max_new_tokens": 2, "examples": ["a", "b"]}
    check_tuning(**options)
    with pytest.raises(ValueError, match=expected):
        check_tuning(**options | given)


def test_full_depth_without_quality_is_refused_before_the_search(tune, counted, tmp_path):
    data = write_examples(tmp_path / "data", 4)  # its references are none that the model writes
    with pytest.raises(ValueError, match="Full depth has a rougeL of 0: there is no quality to keep"):
        tune(GOAL, f"--data.folder={data}")
    assert counted["replays"] == 0
