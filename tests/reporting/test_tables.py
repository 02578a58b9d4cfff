"""The tables as text: a snapshot in Markdown, and a terminal of 120 columns."""

from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console

from hsdlab.metrics import bleu_from_statistics, rouge_scores
from hsdlab.metrics.bertscore import BERTSCORE_KEYS
from hsdlab.reporting import Comparison, tables

HSD_NAME = "HSD(num_skipped=1, min_exit=0, max_exit=2)"
CALM_NAME = "CALM(threshold=0.9, measure='softmax')"
SNAPSHOT = f"""\
# Comparison of decoding strategies

- FullDepth() is the baseline (100 %). 2 examples, 4 layers.
- Intervals: 95% percentile bootstrap over the examples (1000 resamples); those of the % of baseline draw \
the same examples on both sides.
- Average layers: mean over the decode steps of the returned texts; computed layers: over all live beams. \
Neither is a speed-up: that is measured, decode steps only, the prompt pass apart.
- † Layers were saved, but a decode step took longer than the baseline's.

## Quality

| Strategy | Avg. layers | ROUGE-1 | BLEU-1 | Output tokens |
| --- | ---: | ---: | ---: | ---: |
| `FullDepth()` | 4.00 | 0.700 [0.600, 0.800] | 0.750 [0.500, 1.000] | 4.0 [4.0, 4.0] |
| `{HSD_NAME}` | 2.50 | 0.450 [0.300, 0.600] | 0.375 [0.250, 0.500] | 4.0 [2.0, 6.0] |
| `{CALM_NAME}` | 3.00 | 0.700 [0.600, 0.800] | – | 4.0 [4.0, 4.0] |

## Quality as % of the baseline

| Strategy | Avg. layers | ROUGE-1 | BLEU-1 |
| --- | ---: | ---: | ---: |
| `FullDepth()` | 4.00 | 100.0 | 100.0 |
| `{HSD_NAME}` | 2.50 | 64.3 [50.0, 75.0] | 50.0 [50.0, 50.0] |
| `{CALM_NAME}` | 3.00 | 100.0 [100.0, 100.0] | – |

## Cost

| Strategy | Avg. layers | % of layers | Computed layers | Measured speed-up | ms per decode step | Tokens/s \
| Prompt ms | GFLOPs per token | Cache peak MiB |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
| `FullDepth()` | 4.00 | 100.0 | 4.00 | 1.00× | 10.0 | 100 | 20.0 | 2.50 | 1.50 |
| `{HSD_NAME}` | 2.50 | 62.5 | 2.60 | 1.25× | 8.00 | 125 | 20.5 | 1.75 | 1.25 |
| `{CALM_NAME}` | 3.00 | 75.0 | – | 0.80× † | 12.5 | – | – | – | – |

![Quality against average layers and against time](pareto.png)

## Layers by position in the text

The darker, the more of the examples ran the layer in that decode step; grey where none was so long.

![Which layers ran in each decode step](depth.png)

<details><summary>The run</summary>

```json
{{
  "seed": 7
}}
```

</details>
"""


def printed(report, width=120):
    console = Console(file=StringIO(), width=width)
    report.print(console)
    return console.file.getvalue()


def test_markdown_snapshot(full_depth, hsd, calm):
    assert Comparison([full_depth, hsd, calm], run={"seed": 7}).to_markdown() == SNAPSHOT


def test_no_footnote_without_a_slow_row(full_depth, hsd):
    assert tables.SLOW not in Comparison([full_depth, hsd], run={}).to_markdown()


def test_labels_cover_the_metrics_names():
    names = [
        *rouge_scores("a", ["a"]),
        *bleu_from_statistics([1, 1, 1, 0, 0, 0, 1, 0, 0, 0]),
        *BERTSCORE_KEYS,
    ]
    assert list(tables.METRIC_LABELS) == names


def test_terminal_of_120_columns_holds_every_figure_whole(full_depth, hsd, calm):
    # The widest table: all five metrics of the terminal in every row.
    everything = dict.fromkeys(tables.TERMINAL_METRICS, 0.4567)
    results = [
        replace(
            each,
            scores=everything,
            examples=[example | {"scores": everything} for example in each.examples],
            efficiency=full_depth.efficiency | each.efficiency | {"tokens_per_second": 12345.6},
        )
        for each in (full_depth, hsd, calm)
    ]
    text = printed(Comparison(results, run={}))
    assert max(map(len, text.splitlines())) <= 120
    assert "…" not in text
    quality, cost = text.split("Cost\n" if "Cost\n" in text else "Cost ", 1)
    for label in ("ROUGE-1", "ROUGE-2", "ROUGE-L", "BLEU-4", "BERTScore F1", "Tokens"):
        assert label in quality
    assert quality.count("0.457 100%") == 15
    assert quality.count("0.457, 0.457") == 12  # BLEU-4 comes from the statistics
    assert [line.split()[-9:] for line in cost.splitlines() if "HSD" in line] == [
        ["2.50", "62.5", "2.60", "1.25×", "8.00", "12346", "20.5", "1.75", "1.25"]
    ]
    assert "0.80× †" in cost
    assert "† Layers were saved, but a decode step took longer than the baseline's." in cost


def test_terminal_shows_value_share_and_interval(full_depth, hsd):
    lines = printed(Comparison([full_depth, hsd], run={})).splitlines()
    first = next(index for index, line in enumerate(lines) if "HSD" in line)
    assert lines[first].split()[1:] == ["2.50", "0.450", "64%", "4.0"]
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
    assert tables._significant(value) == text


def test_a_speed_up_beyond_the_layers_is_marked(full_depth, hsd):
    busy = replace(hsd, efficiency=hsd.efficiency | {"decode_step_ms": 4.0})
    text = Comparison([full_depth, busy], run={}).to_markdown()
    assert "2.50× ‡" in text
    assert "- ‡ More than the layers allow" in text


def test_an_oracle_is_marked_and_has_no_time(full_depth, hsd):
    report = Comparison([full_depth, replace(hsd, is_oracle=True)], run={})
    assert f"| `{HSD_NAME}` (oracle) | 2.50 | 62.5 | 2.60 | – | – | – | – | 1.75 | 1.25 |" in report.to_markdown()
    assert "- An oracle looks at layers that it then claims not to have run" in report.to_markdown()
    assert "oracle" not in Comparison([full_depth, hsd], run={}).to_markdown()
