"""docs/early_exit.md says what the committed JSON says, and leaves out what was not measured."""

from dataclasses import replace

import pytest
from matplotlib.figure import Figure

from benchmarks import early_exit, early_exit_data, results_data, run_results
from hsdlab import CALM, HSD, PABEE, Compose, FullDepth, LearnedExit, OracleExit
from hsdlab.records.bench import BenchCell
from hsdlab.records.calibration import CalibrationResult, CalibrationTest
from hsdlab.records.comparison import compare_results
from tests.blank_pictures import PNG
from tests.doc_records import RUN, bench_result, bench_side, strategy_result
from tests.test_results import lines_of
from tests.tiny_runs import ParseOnly, run

CALM_ROW, COMPOSED, ROUTER = (
    CALM(0.9),
    Compose(HSD(2, 0, 8), CALM(0.9)),
    LearnedExit("runs/a_b/exit_router.safetensors"),
)


def comparison(shares, **changes):
    """Strategies with (layers of 20, share of 0.8 in ROUGE-L and BLEU-4, the same in BERTScore)."""
    made = [
        strategy_result(strategy, layers, {"rougeL": 0.8 * share, "bleu4": 0.8 * share, "bertscore_f1": 0.8 * bert})
        for strategy, (layers, share, bert) in shares.items()
    ]
    made = [replace(each, is_oracle=each.name.startswith("Oracle")) for each in made]
    return replace(compare_results(made, RUN), **changes)


def calibration():
    """Two settings passed the test and the third did not; the list has a fourth."""
    settings = [CALM(0.99), CALM(0.95), CALM(0.9)]
    rows = comparison({FullDepth(): (20.0, 1, 1), **{each: (9.0 - n, 1, 1) for n, each in enumerate(settings)}})
    tests = [CalibrationTest((loss, 0.0), 0.01, 2 * loss, loss < 0.1) for loss in (0.01, 0.02, 0.2)]
    names = (*map(repr, settings), repr(CALM(0.8)))
    return CalibrationResult(
        RUN, 0.05, 0.1, "hoeffding_bentkus", "risk", "rougeL", names, ("a", "b"), 29, tuple(tests), rows
    )


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """No results yet: docs/results and runs/results in a temporary folder."""
    monkeypatch.setattr(results_data, "RESULTS", tmp_path / "committed")
    monkeypatch.setattr(results_data, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(results_data, "ADAPTERS", tmp_path / "no adapter")
    (tmp_path / "committed").mkdir()
    return tmp_path


@pytest.fixture
def measured(folders):
    """E2E was decoded with two training seeds and timed, and one threshold was chosen."""
    exits = {
        FullDepth(): (20.0, 0.985, 1.0),
        CALM_ROW: (9.0, 0.99, 0.985),
        CALM(0.5): (6.0, 0.9, 0.9),
        PABEE(2): (12.0, 0.97, 0.97),
        ROUTER: (8.0, 0.97, 0.97),
        COMPOSED: (7.0, 0.988, 0.99),
        OracleExit(): (5.0, 0.99, 0.99),
    }
    sides = [
        ("FullDepth", 20.0, 1.0),
        (repr(CALM_ROW), 9.5, 1.4),
        (repr(COMPOSED), 7.5, 1.6),
        (repr(HSD(2, 0, 8)), 8, 1.8),
    ]
    timed = bench_result(*(bench_side(*side) for side in sides))
    cells = (timed.cells[0], BenchCell(8, 1, "float32", (8,), tuple(bench_side(*side) for side in sides[:2])))
    for name, record in (
        ("e2e_plain_greedy/comparison.json", comparison({FullDepth(): (20.0, 1.0, 1.0)})),
        (
            "e2e_skip_aware_greedy/comparison.json",
            comparison({FullDepth(): (20, 1, 1), HSD(2, 0, 8): (8.0, 0.987, 1.0)}),
        ),
        ("e2e_exits_greedy/comparison.json", comparison(exits)),
        (
            "e2e_exits_seed1_greedy/comparison.json",
            comparison({FullDepth(): (20, 1, 1), CALM_ROW: (10.0, 0.97, 0.985)}),
        ),
        ("e2e_exits_bench/bench.json", replace(timed, cells=cells, planned_cells=2)),
        ("e2e_exits_calibration_softmax/calibration.json", calibration()),
    ):
        (folders / "runs" / name).parent.mkdir(parents=True)
        record.write(folders / "runs" / name)
    early_exit_data.collect()
    return early_exit.page()


def test_the_page_is_up_to_date():
    assert early_exit.page() == early_exit.PAGE.read_text(encoding="utf-8"), "run python -m benchmarks.early_exit"


def test_without_results_the_page_says_so(folders):
    page = early_exit.page()
    assert page.count("*Not measured yet.*") == 5
    assert all("not measured yet" in line for line in lines_of(page, "## How far it came"))
    early_exit.draw()
    assert list(results_data.RESULTS.glob("*.png")) == []


def test_a_row_has_quality_against_the_plain_model_and_times_of_both_batch_sizes(measured):
    rows = {tuple(line.split(" | ")[:2]): line for line in lines_of(measured, "## E2E")}
    assert rows["| `CALM(0.9)`", "exits"] == (
        "| `CALM(0.9)` | exits | 9.0 | 0.792 [0.792, 0.792]<br>99.0 % | 0.792 [1.000, 1.000]<br>99.0 % | "
        "0.788 [0.788, 0.788]<br>98.5 % | – | 35.7 [9.5]<br>1.40× [1.30, 1.50] | 35.7 [9.5]<br>1.40× [1.30, 1.50] |"
    )
    assert rows["| `HSD(2, 0, 8)`", "skip"].endswith("100.0 % | – | 27.8 [8.0]<br>1.80× [1.70, 1.90] | – |")
    assert "| `LearnedExit(0.5)`", "exits" in rows
    assert list(rows)[:2] == [("| plain `generate`", "–"), ("| `FullDepth()`", "plain")]


def test_goals_name_the_nearest_setting_and_what_is_missing(measured):
    half, batch_1, batch_8, _, _, composed, oracle, _, full, _ = lines_of(measured, "## How far it came")
    assert half.endswith("| `CALM(0.9)` | 99.0 %, 99.0 %, 98.5 % at 9.0 layers (45 %) | reached |")
    assert batch_1.endswith("| `CALM(0.9)` | 1.40× [1.30, 1.50] | no, 0.10× short |")
    assert batch_8.endswith("| `CALM(0.9)` | 1.40× [1.30, 1.50] | reached |")
    # HSD(2, 0, 8) is 0.1 % below Compose in ROUGE-L, and faster
    rivals = "`CALM(0.9)` 1.40× at 99.0 %; `HSD(2, 0, 8)` 1.80× at 98.7 %"
    assert composed.endswith(f"| 1.60× at 98.8 %; {rivals} | no, 0.20× short |")
    assert oracle.endswith("| 5.0 of 20 layers | reached |")
    assert full.endswith("| `FullDepth()` | 98.5 %, 98.5 %, 100.0 % | no, 0.5 % short |")


def test_exits_and_schedules_trained_together_have_a_table_and_the_goal_of_compose(measured, folders):
    """There Compose keeps 98.3 %, 0.4 % less than HSD(2, 0, 8), and is faster than it and than CALM on any model."""
    assert "trained together" not in measured
    decoded = {FullDepth(): (20.0, 1, 1), HSD(2, 0, 8): (8.0, 0.98, 0.99), COMPOSED: (6.0, 0.983, 0.99)}
    sides = [("FullDepth", 20.0, 1.0), (repr(HSD(2, 0, 8)), 8.0, 1.9), (repr(COMPOSED), 6.0, 2.0)]
    timed = bench_result(*(bench_side(*side) for side in sides))
    for name, record in (
        ("greedy/comparison.json", comparison(decoded)),
        ("bench/bench.json", timed),
        ("calibration_compose/calibration.json", calibration()),
    ):
        file = folders / f"runs/e2e_exits_and_schedules_{name}"
        file.parent.mkdir()
        record.write(file)
    early_exit_data.collect()
    page = early_exit.page()
    goal = lines_of(page, "## How far it came")[5]
    rivals = "`CALM(0.9)` 1.40× at 99.0 %; `HSD(2, 0, 8)` 1.90× at 98.7 %"
    assert goal.endswith(f"| `Compose(HSD(2, 0, 8), CALM(0.9))` | 2.00× at 98.3 %; {rivals} | reached |")
    rows = lines_of(page, "### E2E: exits and schedules trained together")
    assert [row.split(" | ")[:3] for row in rows[1:4]] == [  # after plain generate
        ["| `FullDepth()`", "both", "20.0"],
        ["| `HSD(2, 0, 8)`", "both", "8.0"],
        ["| `Compose(HSD(2, 0, 8), CALM(0.9))`", "both", "6.0"],
    ]
    assert "`CALM(0.95)`" in rows[-1], "what calibrate chose"
    assert "](results/e2e_exits_and_schedules_bench.json)" in page
    early_exit.draw()
    assert "](results/e2e_exits_and_schedules.png)" in early_exit.page()


def test_seeds_have_their_mean_and_range_and_a_missing_one_a_dash(measured):
    seed_0, seed_1, seed_2, mean, spread = lines_of(measured, "### E2E: three training seeds")
    assert seed_0 == "| 0 | 9.0 | 99.0 | 99.0 | 98.5 |"
    assert seed_1 == "| 1 | 10.0 | 97.0 | 97.0 | 98.5 |"
    assert seed_2 == "| 2 | – | – | – | – |"
    assert mean == "| mean | 9.5 | 98.0 | 98.0 | 98.5 |"
    assert spread.startswith("| range | 9.0 to 10.0 | 97.0 to 99.0 |")


def test_a_calibration_is_kept_without_its_losses(measured):
    (line,) = lines_of(measured, "### E2E: thresholds")
    assert line == "| softmax | 3 of 4 | 2 | risk, ROUGE-L | 0.05, ε 0.1 | `CALM(0.95)` | 0.0100 | 0.0400 | 8.0 |"
    kept = (results_data.RESULTS / "e2e_exits_calibration_softmax.json").read_text()
    assert "losses" not in kept
    assert "[e2e_exits_calibration_softmax.json](results/e2e_exits_calibration_softmax.json): 2031-01-02" in measured


def test_the_picture_is_drawn_and_the_other_page_does_not_read_these_files(measured):
    early_exit.draw()
    assert (results_data.RESULTS / "e2e_exits.png").read_bytes().startswith(b"\x89PNG")
    assert "results/e2e_exits.png" in early_exit.page()
    assert set(results_data.runs("e2e")) == {"e2e_plain_greedy.json", "e2e_skip_aware_greedy.json"}


def test_where_tokens_exit_is_drawn_for_the_best_calm_and_the_learned_exit(measured, folders, monkeypatch):
    def figure(chosen):
        drawn.append([(row.label, result) for row, result in chosen])
        return Figure((1, 1))

    drawn = []
    monkeypatch.setattr(early_exit.tokens, "early_exit_figure", figure)
    monkeypatch.setattr(early_exit.tokens, "early_exit_text_figure", figure)
    monkeypatch.setattr(early_exit, "results_of", lambda folder: range(7))  # of the rows, in their order
    assert "which tokens exit early" not in early_exit.page()
    (folders / "runs/e2e_exits_greedy/predictions").mkdir()
    early_exit.draw()
    assert drawn == [[("CALM(0.9)", 1), ("LearnedExit(0.5)", 4)]] * 2
    assert "### E2E: which tokens exit early" in early_exit.page()


def test_the_picture_of_inspect_is_taken_over(folders):
    assert "reliability of the confidence" not in early_exit.page()
    drawn = folders / "runs/e2e_inspect_after/reliability.png"
    drawn.parent.mkdir(parents=True)
    drawn.write_bytes(PNG)
    early_exit_data.collect()
    page = early_exit.page()
    assert page.index("### E2E: reliability") < page.index("](results/e2e_reliability.png)")
    assert "CommonGen: reliability" not in page


@pytest.mark.parametrize("name", run_results.EXIT_BENCHES)
def test_a_bench_times_every_strategy_and_its_parts_are_trained_first(name, folders, monkeypatch):
    monkeypatch.chdir(results_data.ROOT)
    script, *command = run_results.bench_command(name)
    config = run(monkeypatch, *command, cli=ParseOnly).config["bench"]
    assert (script, config.output, config.batch_sizes) == ("evaluate.py", f"runs/results/{name}", [1, 8])
    assert not run_results.is_made(name)
    names = [run_results._name(each) for each in run_results.listed_in(f"configs/results/bench_{name[:-6]}.yaml")]
    bench_result(*(bench_side(each, 20.0, 1.0) for each in names)).write(results_data.RESULTS / f"{name}.json")
    assert run_results.is_made(name)
    data = name.removesuffix("_exits_bench")
    parts = [f"{data}_{part}" for part in ("exit_classifier", "exit_router", "token_counts")]
    assert list(run_results.part_commands(data)) == parts
    made = results_data.RUNS / f"{data}_exit_router"
    made.mkdir(parents=True)
    (made / "exit_router.safetensors").touch()
    assert list(run_results.part_commands(data)) == [parts[0], parts[2]]
