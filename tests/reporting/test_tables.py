"""The tables as text: a snapshot in Markdown, and a terminal of 120 columns."""

from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console

from hsdlab.costs import Cost
from hsdlab.metrics import bleu_from_statistics, rouge_scores
from hsdlab.metrics.bertscore import BERTSCORE_KEYS
from hsdlab.records.labels import METRIC_LABELS
from hsdlab.reporting import tables
from hsdlab.reporting.comparison import TERMINAL_METRICS, comparison_markdown, print_comparison
from tests.markdown_tables import unpadded
from tests.results import at_step_ms, compared, replace_examples

HSD_NAME = "HSD(1, 0, 2)"
CALM_NAME = "CALM(0.9, softmax)"
SNAPSHOT = f"""\
# Comparison of decoding strategies

- FullDepth is the baseline (100 %). 2 examples, 4 layers.
- Intervals: 95% percentile bootstrap over the examples (1000 resamples). Those of the % of baseline draw \
the same examples for both.
- Average depth: layers per decode step of the returned texts. Computed layers: the same over all live beams. \
Neither is a speed-up: that is measured, for decode steps only, prefill apart.
- † Layers were saved, but a decode step took longer than the baseline's. Confidence measures read the head or a \
part of it after every layer that they check: CALM(0.9, softmax).
- Only 2 examples: the intervals are wide.
- Arguments: HSD(num_skipped, min_exit, max_exit), CALM(threshold, measure).

## Quality

| Strategy | Average depth | ROUGE-1 | BLEU-1 | Output tokens |
| --- | ---: | ---: | ---: | ---: |
| `FullDepth` | 4.00 | 0.700 [0.600, 0.800] | 0.750 [0.500, 1.000] | 4.0 [4.0, 4.0] |
| `{HSD_NAME}` | 2.50 | 0.450 [0.300, 0.600] | 0.375 [0.250, 0.500] | 4.0 [2.0, 6.0] |
| `{CALM_NAME}` | 3.00 | 0.700 [0.600, 0.800] | – | 4.0 [4.0, 4.0] |

## Quality as % of the baseline

| Strategy | Average depth | ROUGE-1 | BLEU-1 |
| --- | ---: | ---: | ---: |
| `FullDepth` | 4.00 | 100.0 | 100.0 |
| `{HSD_NAME}` | 2.50 | 64.3 [50.0, 75.0] | 50.0 [50.0, 50.0] |
| `{CALM_NAME}` | 3.00 | 100.0 [100.0, 100.0] | – |

## Cost

| Strategy | Average depth | % of layers | Computed layers | Measured speed-up | ms per decode step | Tokens/s \
| Prefill ms | GFLOPs per token | MB read per token | Cache peak MiB |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
| `FullDepth` | 4.00 | 100.0 | 4.00 | 1.00× | 10.0 | 100 | 20.0 | 2.50 | 3.00 | 1.50 |
| `{HSD_NAME}` | 2.50 | 62.5 | 2.60 | 1.25× | 8.00 | 125 | 20.5 | 1.75 | 2.00 | 1.25 |
| `{CALM_NAME}` | 3.00 | 75.0 | – | 0.80× † | 12.5 | 80.0 | – | 0 | 0 | 0 |

![Quality against average depth and against time](pareto.png)

## Layers by position in the text

The darker a cell, the more examples ran that layer in that decode step. Grey: no text was that long.

![Which layers ran in each decode step](depth.png)

<details><summary>The run</summary>

```json
{{
  "date_utc": "2026-01-02T03:04:05+00:00",
  "command": [
    "evaluate.py",
    "compare"
  ],
  "seed": 7,
  "config": {{}},
  "versions": {{
    "hsdlab": "0.2.0"
  }},
  "git": null,
  "machine": {{
    "cpu": "A CPU",
    "cores": 2,
    "torch_threads": 1,
    "memory_gib": 8.0,
    "gpus": [],
    "system": "Linux",
    "omp_wait_policy": null,
    "gomp_spincount": null
  }},
  "subcommand": "",
  "examples": null,
  "weights": null,
  "generation": null,
  "earlier": [],
  "weights_hash": null,
  "model_config": null,
  "tokenizer": null,
  "own_code": null
}}
```

</details>
"""


def printed(report, width=120):
    console = Console(file=StringIO(), width=width)
    print_comparison(report, console)
    return console.file.getvalue()


def test_markdown_snapshot(full_depth, hsd, calm):
    assert unpadded(comparison_markdown(compared(full_depth, hsd, calm))) == SNAPSHOT


def test_no_footnote_without_a_slow_row(full_depth, hsd):
    assert tables.SLOW not in comparison_markdown(compared(full_depth, hsd))


def test_a_note_names_few_examples_and_a_quality_below_half(full_depth, hsd):
    def notes(rouge1, examples=1):
        results = [replace(each, examples=each.examples * examples) for each in (full_depth, hsd)]
        return tables.quality_notes(compared(results[0], replace(results[1], scores={"rouge1": rouge1})))

    few, ruined = notes(0.34)
    assert few == "Only 2 examples: the intervals are wide."
    assert ruined.startswith(
        "ROUGE-1 falls below half of the baseline's: as a rule, this model was not trained to skip"
    )
    assert notes(0.36, examples=15) == []


def test_labels_cover_the_metrics_names():
    names = [
        *rouge_scores("a", ["a"], lsum=True),
        *bleu_from_statistics([1, 1, 1, 0, 0, 0, 1, 0, 0, 0]),
        *BERTSCORE_KEYS,
    ]
    assert list(METRIC_LABELS) == names


def test_terminal_of_120_columns_holds_every_figure_whole(full_depth, hsd, calm):
    # The widest table: all five metrics of the terminal in every row.
    everything = dict.fromkeys(TERMINAL_METRICS, 0.4567)
    costs, rows = vars(full_depth.cost), 98.77  # a batch so large that the tokens per second have five digits
    of_rows = ("decode_steps", "executed_layers", "computed_steps", "computed_layers", "flops", "bytes_read")

    def filled(cost):
        """What was measured of as many rows, and whatever else full depth has."""
        measured = {name: value or costs[name] for name, value in vars(cost).items()}
        return Cost(**measured | {name: rows * measured[name] for name in of_rows})

    results = [
        replace(replace_examples(each, scores=everything), scores=everything, cost=filled(each.cost))
        for each in (full_depth, hsd, calm)
    ]
    text = printed(compared(*results))
    assert max(map(len, text.splitlines())) <= 120
    assert "…" not in text
    quality, cost = text.split("Cost\n" if "Cost\n" in text else "Cost ", 1)
    for label in ("ROUGE-1", "ROUGE-2", "ROUGE-L", "BLEU-4", "BERTScore F1", "Tokens"):
        assert label in quality
    assert quality.count("0.457 100%") == 15
    assert quality.count("0.457, 0.457") == 12  # BLEU-4 comes from the statistics
    assert [line.split()[-9:] for line in cost.splitlines() if line.startswith(" HSD(")] == [
        ["2.50", "2.60", "1.25×", "8.00", "12346", "20.5", "1.75", "2.00", "1.25"]
    ]
    assert "0.80× †" in cost
    assert "† Layers were saved, but a decode step took longer than the baseline's." in cost


def test_terminal_shows_value_share_and_interval(full_depth, hsd):
    lines = printed(compared(full_depth, hsd)).splitlines()
    first = next(index for index, line in enumerate(lines) if line.startswith(" HSD("))
    assert lines[first].split()[3:] == ["2.50", "0.450", "64%", "4.0"]
    assert lines[first + 1].split()[-4:] == ["0.300,", "0.600", "2.0,", "6.0"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0123456, "0.0123"),
        (1.5, "1.50"),
        (38.14, "38.1"),
        (12345.6, "12346"),
        (0.0, "0"),
        (float("nan"), "–"),
    ],
)
def test_three_significant_digits(value, text):
    assert tables.significant(value) == text


def test_a_speed_up_beyond_the_layers_is_marked(full_depth, hsd):
    busy = at_step_ms(hsd, 4.0)
    text = comparison_markdown(compared(full_depth, busy))
    assert "2.50× ‡" in text
    assert "- ‡ More than the layers allow" in text


def test_an_oracle_is_marked_and_has_no_time(full_depth, hsd):
    text = unpadded(comparison_markdown(compared(full_depth, replace(hsd, is_oracle=True))))
    assert f"| `{HSD_NAME}` (oracle) | 2.50 | 62.5 | 2.60 | – | – | – | – | 1.75 | 2.00 | 1.25 |" in text
    assert "- An oracle looks at layers that it then claims not to have run" in text
    assert "oracle" not in comparison_markdown(compared(full_depth, hsd))
