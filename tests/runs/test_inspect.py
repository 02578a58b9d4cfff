"""What layers are worth, against transformers' own hidden states and plain forward hooks; the report of it."""

import json
from dataclasses import replace
from importlib import import_module
from io import StringIO
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from rich.console import Console

from hsdlab import FullDepth, generate
from hsdlab.decoding.families import decoder_parts, position_ids
from hsdlab.decoding.layer_outputs import layer_outputs
from hsdlab.exits import Exits, attach_exits
from hsdlab.records.inspection import EarlierInspection, InspectionResult
from hsdlab.records.provenance import run_info
from hsdlab.reporting.inspection import inspection_markdown, print_inspection, summary, write_inspection
from hsdlab.reporting.reliability_figure import reliability_figure, shown_layers
from hsdlab.reporting.tables import number
from hsdlab.runs.inspect import inspect_layers, inspection_result, own_text
from hsdlab.runs.model_info import model_info
from hsdlab.testing import prompts, tiny_model
from tests.reference import slow

LAYERS = 6
GREEDY = {"num_beams": 1, "do_sample": False}
NEW = [6, 1, 3]  # new tokens of each row: 5, 0 and 2 decode steps


def make_batch():
    """Three rows padded on the left, the prompts of different lengths too."""
    length = 10
    input_ids = torch.randint(7, 64, (3, length), generator=torch.Generator().manual_seed(1))
    column = torch.arange(length)
    attention_mask = (column >= torch.tensor([0, 6, 2])[:, None]).long()
    target_mask = column >= length - torch.tensor(NEW)[:, None]
    return {"input_ids": input_ids * attention_mask, "attention_mask": attention_mask, "target_mask": target_mask}


@pytest.fixture
def batch():
    return make_batch()


def steps_of(batch, row):
    """Positions of a row's decode steps: of all new tokens but the last."""
    return range(10 - NEW[row], 9)


def by_hand(model, batch):
    """Agreement, saturation and oracle depth by rows, from `output_hidden_states`; its last entry is normed."""
    given = {name: batch[name] for name in ("input_ids", "attention_mask")}
    last = []
    hook = model.get_decoder().layers[-1] if hasattr(model.get_decoder(), "layers") else model.get_decoder().h[-1]
    handle = hook.register_forward_hook(
        lambda module, args, output: last.append(output[0] if isinstance(output, tuple) else output)
    )
    with torch.no_grad():
        output = model(**given, position_ids=position_ids(given["attention_mask"]), output_hidden_states=True)
    handle.remove()
    states = [*output.hidden_states[:-1], last[0]]
    decoder = model.get_decoder()
    norm = next(getattr(decoder, name) for name in ("norm", "ln_f", "final_layernorm") if hasattr(decoder, name))
    head = model.get_output_embeddings()
    rows = []
    for row in (0, 2):
        sums = {"agreement": [0] * LAYERS, "saturation": [0] * LAYERS, "cosine": [0] * LAYERS, "oracle_layers": 0}
        for position in steps_of(batch, row):
            tokens = [int(head(norm(state[row, position])).argmax()) for state in states[1:]]
            assert tokens[-1] == int(output.logits[row, position].argmax())
            sums["oracle_layers"] += tokens.index(tokens[-1]) + 1
            for layer in range(LAYERS):
                sums["agreement"][layer] += tokens[layer] == tokens[-1]
                sums["saturation"][layer] += set(tokens[layer:]) == {tokens[-1]}
                before, after = states[layer][row, position], states[layer + 1][row, position]
                sums["cosine"][layer] += float(before @ after / (before.norm() * after.norm()))
        rows.append(sums)
    return {name: np.array([sums[name] for sums in rows], dtype=float) for name in rows[0]}


@pytest.mark.parametrize("family", ["gpt2", "llama", "phi", "qwen2"])
def test_predictions_and_cosines_are_those_of_the_hidden_states(family, tiny, batch):
    with torch.no_grad():
        expected = by_hand(tiny(family), batch)
    got = inspect_layers(tiny(family), [batch])
    assert got.steps.tolist() == [5, 2]  # the row without a decode step is left out
    for name, values in expected.items():
        np.testing.assert_allclose(getattr(got, name), values, rtol=0, atol=1e-9, err_msg=name)
    assert 0 < got.agreement[:, :-1].sum() < 7 * (LAYERS - 1)  # there is something to count


def test_the_loss_of_dropping_is_that_of_plain_hooks(family_model, batch):
    got = inspect_layers(family_model, [batch])
    input_ids, attention_mask = batch["input_ids"], batch["attention_mask"]

    def logits(layer=None):
        executed = torch.ones(3, 10, LAYERS, dtype=torch.bool)
        for row in range(3):
            if layer is not None:
                executed[row, list(steps_of(batch, row)), layer] = False
        return slow.masked_logits(family_model, input_ids, attention_mask, executed)

    def losses(logits):
        likelihood = logits.log_softmax(-1)
        return [-sum(float(likelihood[row, p, input_ids[row, p + 1]]) for p in steps_of(batch, row)) for row in (0, 2)]

    full = logits()
    np.testing.assert_allclose(got.loss, losses(full), atol=1e-9)
    for layer in range(LAYERS):
        dropped = logits(layer)
        np.testing.assert_allclose(got.dropped_loss[:, layer], losses(dropped), atol=1e-9)
        same = [sum(int(dropped[r, p].argmax() == full[r, p].argmax()) for p in steps_of(batch, r)) for r in (0, 2)]
        assert got.dropped_agreement[:, layer].tolist() == same
        assert np.abs(got.dropped_loss[:, layer] - got.loss).min() > 1e-6


def test_a_layer_that_is_the_identity_costs_nothing(batch):
    model = tiny_model("llama")
    with torch.no_grad():
        for projection in (model.model.layers[3].self_attn.o_proj, model.model.layers[3].mlp.down_proj):
            projection.weight.zero_()
    got = inspect_layers(model, [batch])
    np.testing.assert_allclose(got.dropped_loss[:, 3], got.loss, rtol=0, atol=1e-12)
    np.testing.assert_allclose(got.cosine[:, 3], got.steps, rtol=0, atol=1e-12)
    assert got.dropped_agreement[:, 3].tolist() == got.steps.tolist()
    assert got.agreement[:, 3].tolist() == got.agreement[:, 2].tolist()


def test_batches_are_joined_and_padding_on_the_right_is_no_text(tiny, batch):
    model = tiny()
    alone = inspect_layers(model, [batch])
    end = torch.ones(3, 2, dtype=torch.long)
    padded = {
        "input_ids": torch.cat([batch["input_ids"], 9 * end], dim=1),
        "attention_mask": torch.cat([batch["attention_mask"], 0 * end], dim=1),
        "target_mask": torch.cat([batch["target_mask"], (0 * end).bool()], dim=1),
    }
    stepless = {name: tensor[1:2] for name, tensor in batch.items()}
    both = inspect_layers(model, [batch, stepless, padded])
    for name, values in vars(alone).items():
        np.testing.assert_allclose(getattr(both, name), np.concatenate([values, values]), atol=1e-9, err_msg=name)


def test_own_text_is_the_greedy_one_up_to_its_end():
    model = tiny_model()
    model.generation_config.eos_token_id = model.generation_config.pad_token_id = None
    input_ids, attention_mask = prompts(3)
    given = {"input_ids": input_ids, "attention_mask": attention_mask}
    free = generate(model, **given, strategy=FullDepth(), max_new_tokens=6).sequences
    model.generation_config.eos_token_id = int(free[0, 5 + 2])  # the first row's third new token
    model.generation_config.pad_token_id = 0
    batch = own_text(model, given, max_new_tokens=6, **GREEDY)
    first = free[0, 5:8].tolist().index(free[0, 7]) + 1
    assert batch["target_mask"][0].sum() == first
    for row in range(3):
        new = int(batch["target_mask"][row].sum())
        assert batch["target_mask"][row].tolist() == [5 <= p < 5 + new for p in range(len(batch["input_ids"][row]))]
        assert batch["input_ids"][row, : 5 + new].tolist() == free[row, : 5 + new].tolist()
    assert inspect_layers(model, [batch]).agreement[:, -1].sum() == batch["target_mask"].sum() - 3


def test_text_without_a_decode_step_is_refused(tiny, batch):
    batch["target_mask"] = torch.arange(10) >= torch.tensor([9, 10, 9])[:, None]
    with pytest.raises(ValueError, match="no decode step"):
        inspect_layers(tiny(), [batch])


@pytest.fixture(scope="module")
def inspected(tmp_path_factory):
    """The result on a tiny model, and the folder to which it was written."""
    folder = tmp_path_factory.mktemp("inspection") / "new"
    model = tiny_model()
    result = inspection_result(inspect_layers(model, [make_batch()]), model_info(model), "a text", run_info(seed=1))
    write_inspection(result, folder)
    return result, folder


def test_figures_are_means_over_all_steps(inspected):
    result, _ = inspected
    measured = inspect_layers(tiny_model(), [make_batch()])
    layer = result.layers[2]
    assert layer.layer == 2
    assert layer.agreement.value == pytest.approx(measured.agreement[:, 2].sum() / 7)
    increase = measured.dropped_loss[:, 2] - measured.loss
    assert layer.dropped_loss.value == pytest.approx(increase.sum() / 7)
    assert layer.dropped_loss.low == pytest.approx(min(increase / measured.steps))  # one example twice
    saturated_at = [(LAYERS + 1) * steps - sum(row) for steps, row in zip([5, 2], measured.saturation, strict=True)]
    assert result.saturated_layers.value == pytest.approx(sum(saturated_at) / 7)
    losses = [each.dropped_loss.value for each in result.layers]
    assert [losses[layer] for layer in result.cheapest_first] == sorted(losses)


def test_files_and_summary(inspected):
    result, folder = inspected
    assert sorted(path.name for path in folder.iterdir()) == [
        "inspect.json",
        "inspect.md",
        "inspect.png",
        "reliability.png",
    ]
    assert repr(InspectionResult.read(folder / "inspect.json")) == repr(result)
    assert (result.examples, result.decode_steps, result.run.seed) == (2, 7, 1)
    text = (folder / "inspect.md").read_text()
    assert summary(result) in text
    assert len([line for line in text.splitlines() if line.startswith("|")]) == LAYERS + 2
    assert f"Dropping layer {result.cheapest_first[0]} costs least (" in summary(result)
    assert f"An oracle exit would run {result.oracle_layers.value:.1f} [" in summary(result)
    assert (folder / "inspect.png").read_bytes().startswith(b"\x89PNG")
    assert not plt.get_fignums()


def with_exits():
    """A tiny model with trained exits after layers 1 and 3, whose adapters change predictions."""
    model = tiny_model()
    exits = Exits([1, 3], decoder_parts(model).head_weights[1], 2).double()
    with torch.no_grad():
        for number, weight in enumerate(exits.parameters()):
            weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(number)).double())
    attach_exits(model, exits)
    return model


def long_batch():
    input_ids = torch.randint(7, 64, (4, 30), generator=torch.Generator().manual_seed(2))
    new = torch.arange(30) >= 4
    return {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids), "target_mask": new.expand(4, 30)}


def auroc_by_hand(scores, positive):
    """The share of pairs of a positive and a negative case in which the positive one has the larger score."""
    pairs = [(a > b) + (a == b) / 2 for a in scores[positive] for b in scores[~positive]]
    return float(sum(pairs) / len(pairs)) if pairs else float("nan")


def test_reliability_is_that_of_pairs_and_bins_counted_by_hand():
    model, batch = with_exits(), long_batch()
    result = inspection_result(inspect_layers(model, [batch]), model_info(model), "a text", run_info())
    parts = decoder_parts(model)
    with torch.no_grad(), layer_outputs(model) as outputs:
        embedded = model(**{name: batch[name] for name in ("input_ids", "attention_mask")}, output_hidden_states=True)
    states = [embedded.hidden_states[0], *outputs.values()]
    states = [state[:, 4:-1].flatten(0, 1) for state in states]  # (steps, d): all new tokens but the last
    head, norm, adapters = model.get_output_embeddings(), model.model.norm, parts.exits
    last = head(norm(states[-1])).argmax(dim=-1)
    plain_agreement = []
    for layer, row in enumerate(result.layers):
        logits = head(adapters(norm(states[layer + 1]), layer))
        agrees = (logits.argmax(dim=-1) == last).numpy()
        top = logits.softmax(dim=-1).topk(2, dim=-1).values.detach()
        response = (top[:, 0] - top[:, 1]).numpy()
        cosine = torch.cosine_similarity(states[layer + 1], states[layer], dim=-1).detach().numpy()
        found = row.reliability
        assert row.agreement.value == pytest.approx(agrees.mean())
        assert found.auroc == pytest.approx(auroc_by_hand(response, agrees), abs=1e-6, nan_ok=True)
        assert found.saturation_auroc == pytest.approx(auroc_by_hand(cosine, agrees), abs=1e-6, nan_ok=True)
        bins = np.minimum((response * 10).astype(int), 9)
        filled = [np.flatnonzero(bins == number) for number in range(10)]
        gaps = [len(of) * abs(response[of].mean() - agrees[of].mean()) for of in filled if len(of)]
        assert found.calibration_error == pytest.approx(sum(gaps) / len(agrees))
        assert found.count == tuple(map(len, filled))
        plain_agreement.append(float((head(norm(states[layer + 1])).argmax(dim=-1) == last).double().mean()))
    assert np.isnan(result.layers[-1].reliability.auroc)  # it always agrees with itself
    assert sum(not np.isnan(row.reliability.auroc) for row in result.layers) >= 3  # there is something to compare
    changed = [row.agreement.value != plain for row, plain in zip(result.layers, plain_agreement, strict=True)]
    assert changed == [parts.exits.layers.count(layer) > 0 for layer in range(LAYERS)]  # the adapters are read


def test_the_report_shows_exits_and_the_model_before(tmp_path, inspected):
    before, _ = inspected
    assert shown_layers(before) == (0, 1, 2, 3, 4)
    assert "before" not in inspection_markdown(before)
    now = inspection_result(inspect_layers(with_exits(), [make_batch()]), before.model, "a text", run_info())
    now = replace(now, exits=(1, 3), before=EarlierInspection(before.model, before.layers, before.exits, before.run))
    assert shown_layers(now) == (1, 3)
    write_inspection(now, tmp_path)
    assert repr(InspectionResult.read(tmp_path / "inspect.json")) == repr(now)
    header, _, *rows = [line for line in (tmp_path / "inspect.md").read_text().splitlines() if line.startswith("|")]
    names = [name.strip() for name in header.split("|")[1:-1]]
    for layer, line in enumerate(rows):
        cells = dict(zip(names, (cell.strip() for cell in line.split("|")[1:-1]), strict=True))
        assert cells["Layer"] == (f"{layer} (exit)" if layer in (1, 3) else str(layer))
        for suffix, result in (("", now), (", before", before)):
            found = result.layers[layer].reliability
            assert cells[f"AUROC, softmax response{suffix}"] == number(found.auroc, 3)
            assert cells[f"AUROC, cosine{suffix}"] == number(found.saturation_auroc, 3)
            assert cells[f"Calibration error{suffix}"] == number(found.calibration_error, 3)
    wide = reliability_figure(now)
    assert [axes.get_title(loc="left") for axes in wide.axes[:2]] == ["Calibration before", "Calibration now"]
    assert [line.get_label() for line in wide.axes[1].lines] == ["Calibrated", "Layer 1", "Layer 3"]
    drawn = {line.get_label(): line.get_ydata() for line in wide.axes[2].lines}
    expected = [layer.reliability.auroc for layer in before.layers]
    np.testing.assert_array_equal(drawn["softmax response, before"], expected)
    printed = StringIO()
    print_inspection(now, Console(file=printed, width=120))
    assert max(map(len, printed.getvalue().splitlines())) <= 120
    assert "AUROC" in printed.getvalue()


def test_one_example_has_no_intervals(tiny, batch, tmp_path):
    one = {name: tensor[:1] for name, tensor in batch.items()}
    result = inspection_result(inspect_layers(tiny(), [one]), model_info(tiny()), "a text", run_info())
    write_inspection(result, tmp_path)
    assert json.loads((tmp_path / "inspect.json").read_text())["oracle_layers"]["low"] is None
    assert "nan" not in inspection_markdown(result)
    assert "[" not in summary(result)
    assert result.examples == 1


def test_own_text_is_made_where_the_model_is(monkeypatch):
    """The data's batches are on the CPU and the model may be on a GPU: "meta" stands for it here."""
    model, seen = tiny_model().to("meta"), {}

    def generate(net, *, input_ids, attention_mask, **options):
        seen.update(input_ids=input_ids.device.type, attention_mask=attention_mask.device.type)
        trace = SimpleNamespace(live=torch.ones(2, len(input_ids), dtype=torch.bool), prompt_length=input_ids.shape[1])
        new = torch.zeros(len(input_ids), 3, dtype=torch.long, device=input_ids.device)
        return SimpleNamespace(sequences=torch.cat([input_ids, new], dim=1), trace=trace)

    monkeypatch.setattr(import_module("hsdlab.runs.inspect"), "generate", generate)
    input_ids, attention_mask = prompts(3)
    batch = own_text(model, {"input_ids": input_ids, "attention_mask": attention_mask}, max_new_tokens=3, **GREEDY)
    assert seen == {"input_ids": "meta", "attention_mask": "meta"}
    assert {tensor.device.type for tensor in batch.values()} == {"meta"}


def test_an_encoder_decoder_is_inspected_along_the_decoders_text(batch):
    model = tiny_model("t5")
    text = batch["input_ids"].flip(1)  # padded on the right, the decoder's start first
    mask, new = batch["attention_mask"].flip(1), batch["attention_mask"].flip(1).bool()
    new[:, 0] = False
    sources = prompts(3)[0].clamp(min=7)
    got = inspect_layers(
        model,
        [
            {
                "input_ids": text,
                "attention_mask": mask,
                "target_mask": new,
                "source_ids": sources,
                "source_mask": torch.ones_like(sources),
            }
        ],
    )
    with torch.no_grad(), layer_outputs(model) as outputs:
        model(input_ids=sources, decoder_input_ids=text, decoder_attention_mask=mask)
    parts = decoder_parts(model)
    tokens = [parts.logits(output).argmax(dim=-1) for output in outputs.values()]  # [rows, length] of each layer
    steps = new[:, :-1] & new[:, 1:]
    for row in range(3):
        agreed = [int((each[row] == tokens[-1][row])[:-1][steps[row]].sum()) for each in tokens]
        assert got.agreement[row].tolist() == agreed
