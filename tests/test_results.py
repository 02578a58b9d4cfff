"""docs/results.md says what the committed JSON says, and the adapters are what their papers say."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.utils.tensorboard import SummaryWriter

from benchmarks import publish_adapter, results, results_data, run_results
from hsdlab import CALM, HSD, FullDepth, SkipDecode, load_model
from hsdlab.exits import Exits
from hsdlab.models.embedded import embedded_folder
from hsdlab.models.installed_adapters import COMPANION, installed_adapters
from hsdlab.records.comparison import Comparison, compare_results
from hsdlab.records.provenance import GitState
from hsdlab.records.strategy import StrategyConfig
from hsdlab.records.tuning import DecodedSetting, TunedSetting, TuningGoal, TuningResult
from tests.doc_records import RUN, bench_result, bench_side, strategy_result
from tests.markdown_tables import unpadded
from tests.tiny_runs import ParseOnly, run


def result(strategy, layers, share):
    """A strategy on 20 layers whose scores are a share of 0.8."""
    return strategy_result(strategy, layers, dict.fromkeys(results.METRICS, 0.8 * share))


def setting(strategy, layers, ideal_speed_up, nats):
    return TunedSetting(repr(strategy), StrategyConfig.of(strategy.config()), layers, ideal_speed_up, nats)


def tuning():
    """A search that kept three settings and decoded two, the first of which keeps 99 %."""
    frontier = (
        setting(HSD(1, 0, 18), 14.0, 1.25, 0.25),
        setting(HSD(2, 0, 8), 9.0, 2.0, 0.5),
        setting(HSD(3, 0, 4), 7.0, 2.5, 1.0),
    )
    decoded = [result(FullDepth(), 20.0, 1.0), result(HSD(2, 0, 8), 9.5, 0.99), result(HSD(3, 0, 4), 7.5, 0.9)]
    return TuningResult(
        run=RUN,
        goal=TuningGoal(max_loss=0.02),
        metric="rougeL",
        scored_texts=2,
        reference_nats_per_token=0.125,
        settings=frontier,
        frontier=(0, 1, 2),
        decoded=(DecodedSetting(1, True), DecodedSetting(2, False)),
        comparison=compare_results(decoded, RUN),
        chosen=1,
        another_might_be_better=False,
    )


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """Results of E2E, half of them in a folder of runs."""
    (tmp_path / "committed").mkdir()
    (tmp_path / "committed/published.csv").write_text((results_data.RESULTS / "published.csv").read_text())
    monkeypatch.setattr(results_data, "RESULTS", tmp_path / "committed")
    monkeypatch.setattr(results_data, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(results_data, "ADAPTERS", tmp_path / "no adapter")
    plain = [result(FullDepth(), 20.0, 1.0), result(HSD(1, 0, 18), 14.0, 0.5)]
    aware = [
        result(FullDepth(), 20.0, 0.99),
        result(SkipDecode(10, 20), 11.0, 1.0),  # more than half of the layers
        result(HSD(1, 0, 18), 10.0, 0.985),
        result(HSD(2, 0, 8), 8.0, 0.93),
        result(HSD(3, 0, 4), 7.0, 0.9),
        result(CALM(schedule="depth", slope=0.02), 3.0, 0.2),
    ]
    bench = bench_result(bench_side("FullDepth", 20.0, 1.0), bench_side(repr(HSD(1, 0, 18)), 9.5, 1.7))
    for name, record in (
        ("e2e_plain_greedy/comparison.json", compare_results(plain, RUN)),
        ("e2e_skip_aware_greedy/comparison.json", compare_results(aware, RUN)),
        ("e2e_bench/bench.json", bench),
    ):
        (tmp_path / "runs" / name).parent.mkdir(parents=True)
        record.write(tmp_path / "runs" / name)
    results_data.collect()
    return results.page()


def lines_of(page, heading):
    """The lines of the table under a heading, without those of its head."""
    _, _, rest = unpadded(page).partition(f"{heading}\n")
    return [line for line in rest.split("\n## ")[0].split("\n### ")[0].splitlines() if line.startswith("|")][2:]


def test_the_page_is_up_to_date():
    assert results.page() == results.PAGE.read_text(encoding="utf-8"), "run python -m benchmarks.results"


def test_goals_are_against_the_plain_model_and_the_nearest_setting_is_named(measured):
    half, third, full = lines_of(measured, "## How far it came")
    assert half == (
        "| E2E | ≥ 98 % at ≤ 50 % of the layers | `HSD(1, 0, 18)` | 10.0 (50 %) | 98.5 % | 98.5 % | 98.5 % | yes | "
        "1.70× [1.60, 1.80] of 1.6× |"
    )
    assert third.startswith("| E2E | ≥ 95 % at ≤ 35 % of the layers | `HSD(3, 0, 4)` | 7.0 (35 %) | 90.0 % |")
    assert third.endswith("| no, 5.0 short | – |")  # not timed
    assert "| `FullDepth()` | 20.0 (100 %) | 99.0 % | 99.0 % | 99.0 % | no, 0.5 short |  |" in full


def test_a_row_has_quality_with_its_share_and_the_time_of_the_bench(measured):
    full, hsd = lines_of(measured, "### E2E, table A: trained plainly")
    assert full.startswith("| `FullDepth()` | 20.0 | 4.0 | 0.800 [0.800, 0.800] |")
    assert full.endswith("| 50.0 [20.0]<br>1.00× |")
    assert hsd.startswith("| `HSD(1, 0, 18)` | 14.0 | 4.0 | 0.400 [0.400, 0.400]<br>50.0 % [50.0, 50.0] |")
    assert hsd.endswith("| 29.4 [9.5]<br>1.70× |")
    assert lines_of(measured, "### E2E, 4 beams: trained plainly") == []
    assert "*Not measured yet.*" in measured


def test_a_schedule_takes_both_models_as_long_and_calm_has_a_time_on_the_benchs_own_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(results_data, "RESULTS", tmp_path)
    calm = repr(CALM(schedule="depth", slope=0.02))
    sides = [bench_side(name, 9.5, 1.7) for name in (repr(FullDepth()), repr(HSD(1, 0, 18)), calm)]
    bench_result(*sides).write(tmp_path / "e2e_bench.json")
    assert list(results_data.times("e2e")) == ["FullDepth()", "HSD(1, 0, 18)", "CALM(depth, 0.02)"]
    assert list(results_data.times("e2e", "plain")) == ["FullDepth()", "HSD(1, 0, 18)"]


def test_the_papers_rows_stand_beside_ours(measured):
    rows = {line.split("`")[1]: line for line in lines_of(measured, "### E2E: beside the paper")}
    assert len(rows) == 11
    # GPT-2's row: 22.94 of 36 layers, ROUGE-L 49.53 of 48.51, BLEU-1 42.15 of 41.34, BERTScore 69.06 of 70.68
    assert "| 64 · 102 · 102 · 98 |" in rows["HSD(1, 0, 18)"]
    assert rows["HSD(1, 0, 18)"].endswith("| 70 · 50 · 50 · 50 | 50 · 99 · 99 · 99 |")
    assert rows["CALM(depth, 0.02)"].endswith("| – | 15 · 20 · 20 · 20 |")
    assert rows["HSD(1, 0, 12)"].endswith("| – | – |")


def test_the_tuners_frontier_stands_with_its_set(measured):
    assert lines_of(measured, "### E2E: the tuner") == []
    (results_data.RUNS / "e2e_tune").mkdir()
    tuning().write(results_data.RUNS / "e2e_tune/tuning.json")
    results_data.collect()
    page = results.page()
    assert lines_of(page, "### E2E: the tuner") == [
        "| `FullDepth()` | 0.125 | 1.00× | 20.0 |  |  |",
        "| `HSD(1, 0, 18)` | 0.250 | 1.25× | (14.0) | – | – |",
        "| `HSD(2, 0, 8)` | 0.500 | 2.00× | 9.5 | 99.0 % [99.0, 99.0] | chosen |",
        "| `HSD(3, 0, 4)` | 1.000 | 2.50× | 7.5 | 90.0 % [90.0, 90.0] | missed |",
    ]
    assert "keeps 98 % of ROUGE-L" in page
    assert "on 2 examples" in page


def test_the_run_of_each_file_is_named(measured):
    assert (
        "- [e2e_plain_greedy.json](results/e2e_plain_greedy.json): 2031-01-02, commit 0123456789; seed 0, A CPU, "
        "2 cores, torch 9.9, transformers 8.8."
    ) in measured


LATER = {"date_utc": "2031-02-03T00:00:00+00:00", "git": GitState("f" * 40, dirty=False)}


def comparison_of(strategy, share, **run):
    return compare_results([result(strategy, 20.0, share)], replace(RUN, **run))


def shares_and_commits(comparison):
    rows = [(row.quality["rougeL"].value / 0.8, row.measured.commit[0]) for row in comparison.rows]
    assert [row.number for row in comparison.rows] == list(range(1, len(rows) + 1))
    return rows


def test_rows_of_one_comparison_may_come_from_several_runs(tmp_path):
    old = results_data.merged(None, comparison_of(HSD(1, 0, 18), 0.5))
    both = results_data.merged(old, comparison_of(HSD(2, 0, 8), 0.25, **LATER))
    assert shares_and_commits(both) == [(0.5, "0"), (0.25, "f")]
    both.write(tmp_path / "both.json")
    assert Comparison.read(tmp_path / "both.json").to_json() == both.to_json()
    again = results_data.merged(both, comparison_of(HSD(2, 0, 8), 0.75, **LATER))
    assert shares_and_commits(again) == [(0.5, "0"), (pytest.approx(0.75), "f")]
    for other in ({"weights": "x"}, {"examples": "x"}, {"config": {"model": {"name": "m", "num_beams": 4}}}):
        assert len(results_data.merged(both, comparison_of(HSD(1, 0, 18), 0.7, **other)).rows) == 1


def test_a_page_names_every_run_of_a_comparisons_rows(measured):
    (results_data.RUNS / "e2e_plain_greedy/comparison.json").unlink()
    later = compare_results([result(FullDepth(), 20.0, 1.0), result(HSD(2, 0, 8), 8.0, 0.4)], replace(RUN, **LATER))
    later.write(results_data.RUNS / "e2e_plain_greedy/comparison.json")
    results_data.collect()
    page = results.page()
    assert "e2e_plain_greedy.json): 2031-01-02, commit 0123456789; 2031-02-03, commit ffffffffff; seed 0," in page
    names = [line.split("`")[1] for line in lines_of(page, "### E2E, table A: trained plainly")]
    assert names == ["FullDepth()", "HSD(1, 0, 18)", "HSD(2, 0, 8)"]


def test_what_is_missing_is_decoded_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setattr(results_data, "RESULTS", tmp_path)
    monkeypatch.setattr(run_results, "load_model", lambda name, dtype: (torch.nn.Linear(1, 1), None))
    monkeypatch.setattr(run_results, "weights_fingerprint", lambda model: "w")
    beams = run_results.Decode("e2e", "plain", "beam4")
    assert len(beams.missing()) == len(beams.strategies()) == 4
    done = compare_results([result(FullDepth(), 20.0, 1.0), result(HSD(1, 0, 18), 14.0, 0.5)], RUN)
    done.write(tmp_path / "e2e_plain_beam4.json")
    missing = beams.missing()
    assert [each["class_path"] for each in missing] == ["SkipDecode", "HSD"]
    replace(done, run=replace(RUN, weights="x")).write(tmp_path / "e2e_plain_beam4.json")
    assert len(beams.missing()) == 4


def test_a_tuning_is_made_anew_for_other_weights_and_a_bench_for_a_new_strategy(tmp_path, monkeypatch):
    monkeypatch.setattr(results_data, "RESULTS", tmp_path)
    monkeypatch.setattr(run_results, "load_model", lambda name, dtype: (torch.nn.Linear(1, 1), None))
    monkeypatch.setattr(run_results, "weights_fingerprint", lambda model: "w")
    assert not run_results.is_made("e2e_tune")
    assert not run_results.is_made("e2e_bench")
    tuning().write(tmp_path / "e2e_tune.json")
    assert run_results.is_made("e2e_tune")
    monkeypatch.setattr(run_results, "weights_fingerprint", lambda model: "x")
    assert not run_results.is_made("e2e_tune")

    names = [run_results._name(each) for each in run_results.Decode("e2e", "skip_aware", "greedy").strategies()]
    assert names[0] == "FullDepth()"
    for timed, enough in ((names[:-1], False), (names[1:], False), (names, True), (["FullDepth", *names[1:]], True)):
        bench_result(*(bench_side(name, 20.0, 1.0) for name in timed)).write(tmp_path / "e2e_bench.json")
        assert run_results.is_made("e2e_bench") == enough


@pytest.mark.parametrize("decode", run_results.DECODES, ids=lambda decode: decode.name)
def test_the_commands_parse(decode, monkeypatch):
    monkeypatch.chdir(results_data.ROOT)
    script, *command = decode.command(decode.strategies())
    cli = run(monkeypatch, *command, cli=ParseOnly)
    assert script == "evaluate.py"
    assert len(cli.config["compare"].strategies) == len(decode.strategies())
    assert cli.config["compare"].model.name == decode.weights


@pytest.mark.parametrize("name", run_results.TUNINGS)
def test_the_tuners_command_parses(name, monkeypatch):
    monkeypatch.chdir(results_data.ROOT)
    script, *command = run_results.tune_command(name)
    config = run(monkeypatch, *command, cli=ParseOnly).config["tune"]
    assert (script, config.output) == ("evaluate.py", f"runs/results/{name}")


def test_the_picture_is_drawn_and_shown(measured):
    results.draw()
    assert (results_data.RESULTS / "e2e.png").read_bytes().startswith(b"\x89PNG")
    assert not (results_data.RESULTS / "common_gen.png").exists()
    assert "![E2E: ROUGE-L against layers and against time](results/e2e.png)" in results.page()


def test_an_adapter_is_published_in_bfloat16_with_its_card(tmp_path):
    run, folder = tmp_path / "run", tmp_path / "e2e_skip_aware"
    (run / "model").mkdir(parents=True)
    weights = {"a.lora_A.weight": torch.randn(4, 8), "a.lora_B.weight": torch.randn(8, 4)}
    save_file(weights, run / "model/adapter_model.safetensors")
    (run / "model/adapter_config.json").write_text('{"r": 4}')
    RUN.write(run / "run.json")
    with SummaryWriter(run / "lightning_logs/version_0") as writer:
        for step, loss in [(99, 1.25), (199, 1.5)]:
            writer.add_scalar("val/loss", loss, step)
    with SummaryWriter(run / "lightning_logs/version_1") as writer:  # resumed before the second
        writer.add_scalar("val/loss", 1.125, 199)
    publish_adapter.publish(run, folder)

    published = load_file(folder / "adapter_model.safetensors")
    assert {name: weight.tolist() for name, weight in published.items()} == {
        name: weight.bfloat16().tolist() for name, weight in weights.items()
    }
    training = json.loads((folder / "training.json").read_text())
    assert training["losses"] == {"val/loss": [[100, 1.25], [200, 1.125]]}
    assert training["git"] == {"commit": "0123456789" * 4, "dirty": False}
    text = publish_adapter.card("e2e-skip-aware", folder)
    for part in ("`python evaluate.py`", "of rank 4", f"`{'0123456789' * 4}`, a clean tree", "CC BY-SA 4.0"):
        assert part in text
    assert "1.125 at full depth" in text


def test_an_adapter_with_exits_is_published_with_them(tmp_path):
    run, folder = tmp_path / "run", tmp_path / "e2e_exits"
    (run / "model").mkdir(parents=True)
    save_file({"a.lora_A.weight": torch.randn(4, 8)}, run / "model/adapter_model.safetensors")
    (run / "model/adapter_config.json").write_text('{"r": 4}')
    exits = Exits([1, 3], 8, 2)
    exits.save(run / "model")
    replace(RUN, config={"data": {"init_args": {"folder": "runs/results/common_gen_longer"}}}).write(run / "run.json")
    with SummaryWriter(run / "lightning_logs/version_0") as writer:
        writer.add_scalar("val/supervised_loss", 0.5, 99)
    publish_adapter.publish(run, folder)
    published = Exits.load(folder)
    assert (published.layers, published.size, published.rank) == ((1, 3), 8, 2)
    for ours, theirs in zip(published.parameters(), exits.parameters(), strict=True):
        assert torch.equal(ours, theirs.detach().bfloat16().float())
    assert (folder / "exits.safetensors").stat().st_size < (run / "model/exits.safetensors").stat().st_size
    text = publish_adapter.card("e2e-exits", folder)
    for part in ("trained for early exit", "0.500 over the exits", "as many longer sets"):
        assert part in text


def test_an_adapter_too_large_for_a_repository_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(publish_adapter, "LARGEST_MB", 0)
    (tmp_path / "model").mkdir()
    save_file({"a": torch.zeros(9)}, tmp_path / "model/adapter_model.safetensors")
    with pytest.raises(ValueError, match=r"expected at most 0: lower lora\.r\."):
        publish_adapter.publish(tmp_path, tmp_path / "out")


@pytest.mark.parametrize("name", publish_adapter.NAMES)
def test_the_adapters_of_the_companion_are_what_their_cards_say(name):
    folder = publish_adapter.folder_of(name)
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "embedded:smollm2-135m"
    assert (folder / "README.md").read_text(encoding="utf-8") == publish_adapter.card(name, folder)
    weights = folder / "adapter_model.safetensors"
    assert weights.stat().st_size < publish_adapter.LARGEST_MB * 1e6
    with safe_open(weights, "pt") as file:
        assert {file.get_tensor(key).dtype for key in file.keys()} == {torch.bfloat16}  # noqa: SIM118 (no mapping)


def test_a_card_repeats_the_published_scores():
    card = publish_adapter.card("e2e-skip-aware", publish_adapter.folder_of("e2e-skip-aware"))
    (line,) = [line for line in card.splitlines() if "HSD(2, 0, 8)" in line]
    assert [cell.strip() for cell in line.split("|")[2:6]] == ["14.1", "0.650", "0.643", "0.916"]
    assert publish_adapter.SHA256["e2e"] in card


def test_an_adapter_is_loaded_by_its_name():
    if not any(each.distribution == COMPANION for each in installed_adapters().values()):
        pytest.skip("hsdlab-adapters is not installed: make install")
    try:
        embedded_folder("embedded:smollm2-135m")
    except RuntimeError as error:
        pytest.skip(f"not in the cache, and no network to fetch it: {error}")
    plain, _ = load_model("embedded:smollm2-135m", device="cpu")
    model, _ = load_model("embedded:smollm2-135m-common-gen", device="cpu")
    first = (each.model.layers[0].self_attn.q_proj.weight for each in (plain, model))
    assert not torch.equal(*first)
    assert model.name_or_path == "embedded:smollm2-135m"


def test_make_results_says_what_is_missing_and_how_long_it_takes(measured):
    """A row of 10 steps at 20 layers took 0.2 s to decode; wall time was not measured."""
    seconds = {"e2e_plain_greedy": 95.0, "e2e_bench": 4000.0}
    text = run_results.plan(seconds)
    assert "  e2e_plain_greedy: about 1 min 35 s\n  e2e_bench: about 1 h 6 min\n" in text
    assert "In all about 1 h 8 min, as long as" in text
    assert "goes on with the same command" in text
    unknown = run_results.plan({"e2e_tune": None, "e2e_bench": 60.0})
    assert "e2e_tune: unknown" in unknown
    assert "In all about 1 min 0 s and what is unknown" in unknown
    assert run_results.plan({}) == "Nothing is missing in docs/results."


def test_the_expected_time_is_that_of_the_rows_that_were_made():
    decode = run_results.DECODES[0]
    strategies = decode.strategies()
    whole, one = run_results.expected_s(decode.name, strategies), run_results.expected_s(decode.name, strategies[:1])
    assert 0 < one < whole
    unknown = {"class_path": "HSD", "init_args": {"num_skipped": 9}}
    mean = whole / len(strategies)
    assert run_results.expected_s(decode.name, [unknown]) == pytest.approx(mean, rel=0.2)
    assert run_results.expected_s("e2e_bench") > 60
