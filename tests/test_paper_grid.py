"""The papers' grid: every model layer with every hub data layer, on tiny random models of the same architectures."""

import itertools
import re
from pathlib import Path

import datasets
import pytest
import yaml
from datasets import Dataset

import hsdlab.data.hub
import hsdlab.modules.decode
from hsdlab import CALM, FullDepth
from hsdlab.cli import EvaluateCLI
from hsdlab.data import HubDataset
from hsdlab.data.hub import HUB_SETS
from hsdlab.decoding.families import decoder_parts
from hsdlab.records.comparison import Comparison
from hsdlab.testing import tiny_model
from tests.data.test_hub import EXAMPLES, ROWS
from tests.law_cells import in_turns
from tests.strategies.test_paper_tables import PUBLISHED
from tests.test_configs import ARCHITECTURES
from tests.tiny_checkpoints import TOKENS, tiny_tokenizer
from tests.tiny_runs import read_records, run

CONFIGS = Path(__file__).parents[1] / "configs"
GRID = CONFIGS / "strategy" / "paper_grid.yaml"
MODELS = {
    path.stem: path
    for path in sorted((CONFIGS / "model").glob("*.yaml"))
    if yaml.safe_load(path.read_text(encoding="utf-8"))["model"]["name"] in ARCHITECTURES  # not the fine-tuned
}
DATA = {
    path.stem: path
    for path in sorted((CONFIGS / "data").glob("*.yaml"))
    if yaml.safe_load(path.read_text(encoding="utf-8"))["data"].get("class_path") == "HubDataset"
}


@pytest.fixture
def tiny_world(monkeypatch):
    """Hub and models without network: a few rows a data set, a tiny model for each name."""

    def load_dataset(path, name, *, revision, split):
        (key,) = (key for key, hub_set in HUB_SETS.items() if hub_set.id == path)
        column = HUB_SETS[key].source
        rows = ROWS[key]
        if HUB_SETS[key].is_undivided:  # enough of them for a test split
            rows = [{**rows[0], column: f"{rows[0][column]} {number}"} for number in range(30)]
        return Dataset.from_list(rows)

    def load_model(name, **options):
        family, num_layers = ARCHITECTURES[name]
        model = tiny_model(family, num_layers=num_layers, max_position_embeddings=1024, vocab_size=len(TOKENS))
        tokenizer = tiny_tokenizer()
        tokenizer.pad_token = tokenizer.eos_token
        return model, tokenizer

    monkeypatch.setattr(hsdlab.data.hub, "_hub_answers", lambda hub_set: True)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(hsdlab.modules.decode, "load_model", load_model)


def compare(monkeypatch, model, data, output, *more, cli=EvaluateCLI):
    """Run the command of configs/README.md for one model and one data set."""
    layers = [f"--config={path}" for path in (MODELS[model], DATA[data], GRID)]
    local = ["--model.metrics=[rouge]", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
    return run(monkeypatch, "compare", *layers, f"--output={output}", *local, *more, cli=cli)


class UpToTheRun(EvaluateCLI):
    """Makes everything, tries each strategy on the model and stops."""

    def compare(self, **kwargs):
        self.arguments = kwargs


def test_there_is_a_layer_for_each_model_and_hub_set():
    names = [yaml.safe_load(path.read_text(encoding="utf-8"))["model"]["name"] for path in MODELS.values()]
    assert sorted(names) == sorted(ARCHITECTURES)
    assert set(DATA) == set(HUB_SETS)


@pytest.mark.filterwarnings("ignore:common_gen. the references of the test split")
@pytest.mark.parametrize(("model", "data"), in_turns(itertools.product(MODELS, DATA), 5))
def test_each_model_fits_each_data_set_and_all_strategies(model, data, tiny_world, tmp_path, monkeypatch):
    cli = compare(monkeypatch, model, data, tmp_path / "run", cli=UpToTheRun)
    family, num_layers = ARCHITECTURES[cli.config.compare.model.name]
    assert cli.model.model.config.model_type == family
    assert decoder_parts(cli.model.model).num_layers == num_layers
    assert (type(cli.datamodule), cli.datamodule.name) == (HubDataset, data)
    assert cli.model.max_new_tokens == HUB_SETS[data].max_new_tokens
    assert cli.model.num_beams == 4
    assert [repr(strategy) for strategy in cli.config_init.compare.strategies] == settings_of_the_tables()
    written = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text(encoding="utf-8"))
    assert len(written["strategies"]) == 11


def settings_of_the_tables():
    """The rows of HSD's tables, in their order."""
    calm = [CALM(schedule="depth", slope=slope) for slope in (0.02, 0.005)]
    return [repr(strategy) for strategy in (FullDepth(), *calm, *(strategy for strategy, _ in PUBLISHED))]


@pytest.mark.slow
def test_a_cell_of_the_grid_runs(tiny_world, tmp_path, monkeypatch):
    size = ["--data.limit=1", "--model.max_new_tokens=6", "--model.num_beams=2"]
    compare(monkeypatch, "opt_1.3b", "e2e_nlg", tmp_path / "run", *size)
    comparison = Comparison.read(tmp_path / "run" / "comparison.json")
    assert [row.name for row in comparison.rows] == settings_of_the_tables()
    assert {row.num_layers for row in comparison.rows} == {24}
    files = list((tmp_path / "run" / "predictions").iterdir())
    assert len(files) == 11
    (record,) = read_records(files[0])
    assert (record["source"], *record["references"]) in EXAMPLES["e2e_nlg"]


def test_the_readme_runs_the_whole_grid():
    text = (CONFIGS / "README.md").read_text(encoding="utf-8")
    (models,) = re.findall(r"for model in (.*); do", text)
    (data,) = re.findall(r"for data in (.*); do", text)
    assert sorted(models.split()) == sorted(MODELS)
    assert sorted(data.split()) == sorted(DATA)
    assert f"--config strategy/{GRID.stem} --output=" in text
