"""The event files, read back with TensorBoard's own reader, and what its plugins make of them."""

import math
import re
import shlex
from dataclasses import replace

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugin_util import markdown_to_safe_html
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import metadata

from hsdlab.costs import Cost
from hsdlab.reporting import tensorboard as board
from hsdlab.reporting.comparison import write_comparison
from tests.results import compared, replace_examples

CONFIG = {
    "model": {"name": "embedded:tiny", "max_new_tokens": 4, "num_beams": 2, "adapter": None, "metrics": ["rouge"]},
    "data": {"class_path": "hsdlab.data.JSONLines", "init_args": {"folder": "x", "chat": True, "limit": None}},
}


def read(folder):
    events = EventAccumulator(str(folder), size_guidance={"tensors": 0, "images": 0, "scalars": 0})
    events.Reload()
    return events


def scalars_of(events):
    return {tag: events.Scalars(tag)[-1].value for tag in events.Tags()["scalars"]}


def text(events, tag):
    (event,) = events.Tensors(f"{tag}/text_summary")
    return event.tensor_proto.string_val[0].decode()


@pytest.fixture(scope="module")
def pictures(recorded, tmp_path_factory):
    """Of the report of two strategies."""
    return write_comparison(compared(*recorded), recorded, tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def folder(recorded, pictures, tmp_path_factory):
    """Of the runs of two strategies and of their comparison."""
    folder = tmp_path_factory.mktemp("runs")
    comparison = compared(*recorded, **CONFIG)
    for row, result in zip(comparison.rows, recorded, strict=True):
        board.write_strategy(comparison, row, result, folder / row.class_name)
    board.write_comparison(comparison, recorded, pictures, folder / "comparison")
    return folder


@pytest.fixture(scope="module")
def full(folder):
    return read(folder / "FullDepth")


@pytest.fixture(scope="module")
def hsd_run(folder):
    return read(folder / "HSD")


@pytest.fixture(scope="module")
def together(folder):
    return read(folder / "comparison")


def test_the_strategies_share_their_tags(full, hsd_run):
    assert full.Tags() == hsd_run.Tags()
    assert full.Tags()["images"] == ["depth/heat_map", "depth/text"]
    assert [tag for tag in full.Tags()["tensors"] if tag.endswith("text_summary")] == [
        "samples/1/text_summary",
        "samples/2/text_summary",
    ]


def test_scalars_are_the_figures_of_the_comparison(full, hsd_run):
    cost = {
        **{"average_layers": 2.5, "compute_layers": 2.6, "decode_step_ms": 8.0, "tokens_per_second": 125.0},
        **{"prompt_ms": 20.5, "flops_per_token": 1.75e9, "cache_peak_mib": 1.25, "share_skipped": 0.375},
        **{"bytes_per_token": 2e6, "late_key_values_per_token": 0.0, "intermediate_predictions_per_token": 0.0},
        **{"percent_of_layers": 62.5, "output_tokens": 4.0, "speed_up": 1.25},
    }
    assert scalars_of(hsd_run) == pytest.approx(
        {
            **{"quality/rouge1": 0.45, "quality/bleu1": 0.375},
            **{"percent_of_baseline/rouge1": 100 * 0.45 / 0.7, "percent_of_baseline/bleu1": 50.0},
            **{f"cost/{name}": value for name, value in cost.items()},
            "depth/layers_in_step": 2.0,  # of the last step
        }
    )
    assert [(event.step, event.value) for event in hsd_run.Scalars("depth/layers_in_step")] == [(0, 3), (1, 2), (2, 2)]
    assert scalars_of(full)["cost/speed_up"] == 1
    assert scalars_of(full)["percent_of_baseline/bleu1"] == 100


def test_what_is_not_a_number_and_what_has_no_baseline_is_left_out(calm):
    comparison = compared(calm)
    assert board.scalars(comparison, comparison.rows[0]) == pytest.approx(
        {
            **{"quality/rouge1": 0.7, "cost/average_layers": 3.0, "cost/decode_step_ms": 12.5},
            **{"cost/percent_of_layers": 75.0, "cost/output_tokens": 4.0, "cost/share_skipped": 0.25},
            **{"cost/tokens_per_second": 80.0, "cost/flops_per_token": 0.0, "cost/bytes_per_token": 0.0},
            **{"cost/late_key_values_per_token": 0.0, "cost/intermediate_predictions_per_token": 2.5},
            "cost/cache_peak_mib": 0.0,
        }
    )


def test_the_hparams_table_is_filled_in_the_run_itself(full, hsd_run, together, folder):
    content = hsd_run.summary_metadata[metadata.SESSION_START_INFO_TAG].plugin_data.content
    values = metadata.parse_session_start_info_plugin_data(content).hparams
    assert {name: value.string_value or value.number_value for name, value in values.items()} == {
        **{"strategy": "HSD", "strategy.num_skipped": 1, "data": "JSONLines", "data.folder": "x", "data.chat": "true"},
        **{
            "model.name": "embedded:tiny",
            "model.max_new_tokens": 4,
            "model.num_beams": 2,
            "model.metrics": '["rouge"]',
        },
    }
    assert metadata.SESSION_END_INFO_TAG in full.summary_metadata
    # A list of columns in one run would hide the parameters that only others have; add_hparams makes further runs.
    assert not any(metadata.EXPERIMENT_TAG in run.summary_metadata for run in (full, hsd_run, together))
    assert sorted(path.name for path in folder.iterdir()) == ["FullDepth", "HSD", "comparison"]
    assert all(len(list(path.iterdir())) == 1 for path in folder.iterdir())


def test_without_a_configuration_the_hparams_are_those_of_the_strategy(hsd):
    comparison = compared(hsd)
    expected = {"strategy": "HSD", "strategy.num_skipped": 1}
    assert board.hyperparameters(comparison, comparison.rows[0]) == expected


def test_pictures_are_images(full, together, pictures):
    assert together.Tags()["images"] == ["pareto", "depth", "side_by_side/1", "side_by_side/2"]
    for events in (full, together):
        for tag in events.Tags()["images"]:
            (image,) = events.Images(tag)
            assert image.encoded_image_string.startswith(b"\x89PNG")
            assert image.width > 600
    assert {tag: together.Images(tag)[0].encoded_image_string for tag in pictures} == {
        tag: picture.png for tag, picture in pictures.items()
    }
    assert (together.Images("pareto")[0].width, together.Images("pareto")[0].height) == (2400, 960)


def test_texts_stand_side_by_side_as_they_are(full, together):
    """Markdown and HTML in a text are shown, not obeyed, and a | ends no cell: read what TensorBoard displays."""
    html = markdown_to_safe_html(text(together, "side_by_side/1"))
    cells = [cell.split("</td>")[0] for cell in html.split("<td>")[1:]]
    assert html.count("<table>") == 1
    assert cells[:2] == ["source", "What is a&#124;a&#63;"]
    assert cells[5:7] == ["reference", "a b c e"]
    assert cells[10:15] == ["1 FullDepth", "a b c d", "2.0", "4", "0.800"]
    assert cells[15:] == ["2 HSD&#40;1&#44; 0&#44; 2&#41;", "a b c d", "2.0", "6", "0.600"]  # of a, though b is first
    own = markdown_to_safe_html(text(full, "samples/1"))
    assert own.count("<tr>") == 4
    assert "1 FullDepth" in own


def test_markdown_html_and_line_breaks_in_a_text(full_depth):
    wild = "*no* `code` <b>x</b> | [a](b)\n# head\r\n_end_ é"
    result = replace_examples(full_depth, prediction=wild, source="s" * 3000, average_layers=None)
    comparison = compared(result)
    table = board.sample_table(comparison, [(comparison.rows[0], result.examples[0])])
    html = markdown_to_safe_html(table)
    assert not any(tag in html for tag in ("<em>", "<code>", "<b>", "<a ", "<h1>"))
    assert html.count("<br>") == 2
    assert html.count("<tr>") == 4
    assert f"<td>{'s' * 2000} &#91;…&#93;</td>" in html
    assert "<td>–</td>" in html


def test_the_tables_are_readable_in_the_text_tab(together):
    html = markdown_to_safe_html(text(together, "tables"))
    assert html.count("<table>") == 3
    assert "<code>HSD(1, 0, 2)</code>" in html
    assert "FullDepth is the baseline" in html


def test_the_layout_has_charts_of_tags_that_exist(full, together):
    (event,) = together.Tensors("custom_scalars__config__")
    layout = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])
    assert [category.title for category in layout.category] == ["Quality", "Cost"]
    patterns = {tag for category in layout.category for chart in category.chart for tag in chart.multiline.tag}
    assert patterns == {tag for charts in board.LAYOUT.values() for _, tags in charts.values() for tag in tags}
    tags = [*full.Tags()["scalars"], "quality/bertscore_f1"]  # not among the results by hand
    assert all(any(re.match(pattern, tag) for tag in tags) for pattern in patterns)


def test_written_again_there_is_one_event_file_and_the_new_figures(recorded, tmp_path):
    full, hsd = recorded
    for score in (0.5, 0.25):
        result = replace(hsd, scores={"rouge1": score})
        comparison = compared(full, result)
        board.write_strategy(comparison, comparison.rows[1], result, tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    assert [event.value for event in read(tmp_path).Scalars("quality/rouge1")] == [0.25]


def test_removing_events_leaves_other_files(tmp_path):
    for name in ("a/events.out.tfevents.1.vm", "a/notes.txt", "events.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    board.remove_events(tmp_path)
    board.remove_events(tmp_path / "nowhere")
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["events.txt", "notes.txt"]


def test_results_without_examples_layers_or_scores_are_written(full_depth, tmp_path):
    empty = replace(full_depth, scores={"rouge1": math.nan}, cost=Cost(), examples=())
    for name, result in (("empty", empty), ("unrecorded", full_depth)):
        comparison = compared(result)
        board.write_strategy(comparison, comparison.rows[0], result, tmp_path / name)
        board.write_comparison(comparison, [result], {}, tmp_path / name / "comparison")
    assert read(tmp_path / "empty").Tags()["images"] == ["depth/heat_map"]
    assert read(tmp_path / "unrecorded").Tags()["images"] == ["depth/heat_map", "depth/text"]


@pytest.mark.parametrize(
    ("name", "run", "expected"),
    [
        ("FullDepth()", "", "03_FullDepth"),
        ("HSD(num_skipped=2, min_exit=0, max_exit=7, decay='power')", "", "03_HSD(2,0,7,power)"),
        ("my_package.EveryOther()", "", "03_EveryOther"),
        ("HSD(num_skipped=1, min_exit=0, max_exit=8)", "skip-aware", "03_skip-aware_HSD(1,0,8)"),
        ("HSD(num_skipped=1, min_exit=0, max_exit=8)", "runs/a b", "03_runs-a-b_HSD(1,0,8)"),
        ("CALM(threshold=0.9, classifier='runs/x/exit*.safetensors')", "", "03_CALM(0.9,runs-x-exit-.safetensors)"),
        ("Compose(schedule=HSD(num_skipped=1), gates=[1, 2])", "", "03_Compose(HSD(1),-1,2-)"),
        (f"Long(text='{'x' * 300}')", "", f"03_Long({'x' * 75}"),
    ],
)
def test_a_run_is_named_by_the_label_of_the_tables(recorded, name, run, expected):
    row = replace(compared(*recorded).rows[0], name=name, run=run, number=3)
    assert board.run_name(row) == expected
    assert board.run_name(row, numbered=False) == expected.removeprefix("03_")


def test_the_command_is_one_for_a_shell(tmp_path):
    folder = tmp_path / "a b"
    assert shlex.split(board.command(folder)) == ["tensorboard", "--logdir", str(folder)]
