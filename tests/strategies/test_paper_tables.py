"""The reconstruction of HSD's and SkipDecode's schedules against every scheduled row of HSD's five tables."""

import csv
from pathlib import Path

import pytest

from hsdlab import HSD, SkipDecode

# (data set, most new tokens, model, layers) of the columns below; T is inferred, see docs/reconstruction.md
COLUMNS = [
    (dataset, tokens, model, layers)
    for dataset, tokens in [
        ("cnn_dailymail", 150),
        ("xsum", 150),
        ("e2e_nlg", 50),
        ("common_gen", 30),
        ("healthcaremagic", 150),
    ]
    for model, layers in [("GPT-2", 36), ("Phi-2", 32)]
]
# "Avg. Layer" of arXiv 2403.14919, tables 2 to 6
PUBLISHED = [
    (SkipDecode(10, 20), [16.07, 16.07, 16.07, 16.07, 16.20, 16.20, 16.34, 16.34, 16.07, 16.07]),
    (SkipDecode(10, 24), [18.09, 18.09, 18.09, 18.09, 18.28, 18.28, 18.48, 18.48, 18.09, 18.09]),
    (HSD(1, 0, 18), [22.82, 20.82, 22.82, 20.82, 22.94, 20.94, 23.03, 21.03, 22.82, 20.82]),
    (HSD(2, 0, 18), [18.43, 17.09, 18.43, 17.09, 18.57, 17.24, 18.79, 17.38, 18.43, 17.09]),
    (HSD(1, 0, 12), [21.32, 19.32, 21.32, 19.32, 21.38, 19.38, 21.41, 19.41, 21.32, 19.32]),
    (HSD(2, 0, 12), [16.42, 15.08, 16.42, 15.08, 16.51, 15.18, 16.62, 15.27, 16.42, 15.08]),
    (HSD(1, 0, 8), [20.33, 18.33, 20.33, 18.33, 20.36, 18.36, 20.41, 18.41, 20.33, 18.33]),
    (HSD(2, 0, 8), [15.09, 13.77, 15.09, 13.77, 15.16, 13.83, 15.20, 13.86, 15.09, 13.77]),
]
CELLS = [
    pytest.param(strategy, column, figure, id=f"{strategy}-{column[0]}-{column[2]}")
    for strategy, figures in PUBLISHED
    for column, figure in zip(COLUMNS, figures, strict=True)
]


def test_there_are_eighty():
    assert len(CELLS) == 80


@pytest.mark.parametrize(("strategy", "column", "published"), CELLS)
def test_average_layers(strategy, column, published):
    _, max_steps, _, num_layers = column
    schedule = strategy.scheduled_layers(num_layers, max_steps)
    assert len(schedule) == max_steps - 1
    average = sum(map(len, schedule)) / len(schedule)
    assert average == pytest.approx(published, abs=0.015)


def test_the_figures_are_those_of_the_table_file():
    path = Path(__file__).parents[3] / "shared/paper/hsd_tables.csv"
    if not path.exists():
        pytest.skip(f"{path} is not on this machine; the figures stand in this file")
    names = {str(s): figures for s, figures in PUBLISHED}
    found = 0
    for row in csv.DictReader(path.open()):
        parameters = dict(item.split("=") for item in row["hyperparameters"].split())
        if row["strategy"] not in ("HSD", "SkipDecode"):
            continue
        strategy = {"HSD": HSD, "SkipDecode": SkipDecode}[row["strategy"]](**{k: int(v) for k, v in parameters.items()})
        column = (row["dataset"], int(row["max_new_tokens_inferred"]), row["model"], int(row["num_layers"]))
        assert float(row["avg_layers"]) == names[str(strategy)][COLUMNS.index(column)]
        found += 1
    assert found == 80
