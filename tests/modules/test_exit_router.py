"""Training of LearnedExit's router: what it learns from, its prices, its file."""

import math

import pytest
import torch
from lightning.pytorch import Trainer

from hsdlab import FullDepth, LearnedExit, UserError, Verified, generate
from hsdlab.data import JSONLines
from hsdlab.decoding.exit_router import ExitRouter
from hsdlab.modules import ExitRouterModule
from hsdlab.modules.frozen_exit import ExitExamples
from hsdlab.testing import prompts, tiny_model
from tests.law_cells import ROUTER
from tests.tiny_checkpoints import tiny_llama, tiny_tokenizer
from tests.tiny_runs import write_examples


def module(**options):
    return ExitRouterModule(tiny_model(), tiny_tokenizer(), max_new_tokens=8, **options)


def test_at_the_least_loss_it_reaches_one_half_where_an_exit_pays():
    """One layer whose token is right in 9 of 10 steps: saved · 9 against error_cost · 1."""
    trained = module(layers=[1, 3], width=0, error_cost=2.0)
    agrees = torch.tensor([[True, True]] * 9 + [[False, False]])
    examples = ExitExamples(torch.zeros(10, 2, 32), agrees, torch.zeros(10, dtype=torch.long))
    log_odds = torch.zeros(2, requires_grad=True)
    optimizer = torch.optim.LBFGS([log_odds], max_iter=100)

    def closure():
        optimizer.zero_grad()
        loss = trained.loss(log_odds.expand(10, 2), examples)
        loss.backward()
        return loss

    optimizer.step(closure)
    expected = [math.log(9 * saved / 2.0) for saved in (4 / 6, 2 / 6)]  # layers 1 and 3 of 6: four and two are above
    torch.testing.assert_close(log_odds.detach(), torch.tensor(expected), atol=1e-3, rtol=0)
    assert trained.probability(log_odds.detach()).tolist() == pytest.approx([0.9, 0.9], abs=1e-3)


def test_it_learns_and_decodes_with_its_file(tmp_path):
    model = tiny_llama()
    trained = ExitRouterModule(model, tiny_tokenizer(), max_new_tokens=8, learning_rate=0.03, width=4)
    data = JSONLines(str(write_examples(tmp_path / "data", number=12)), batch_size=4)
    (tmp_path / "data/train.jsonl").write_text((tmp_path / "data/test.jsonl").read_text())
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = Trainer(max_epochs=6, default_root_dir=tmp_path, **quiet)
    trainer.validate(trained, datamodule=data, verbose=False)
    before = float(trainer.callback_metrics["val/loss"])
    trainer.fit(trained, datamodule=data)
    assert trainer.callback_metrics["val/loss"] < 0.8 * before
    assert trained.quality["auroc"].shape == (len(trained.layers),)
    trained.export(tmp_path / "router.safetensors")
    loaded = ExitRouter.load(tmp_path / "router.safetensors")
    assert loaded.layers == trained.layers
    here = trained.router.confidence(torch.ones(2, loaded.hidden_size), trained.layers[-1], 0.5, torch.ones(2))
    assert torch.equal(
        loaded.confidence(torch.ones(2, loaded.hidden_size), loaded.layers[-1], 0.5, torch.ones(2)), here
    )
    out = generate(
        model,
        input_ids=torch.tensor([[5, 6, 7]]),
        strategy=LearnedExit(str(tmp_path / "router.safetensors"), threshold=0.0),
        max_new_tokens=4,
    )
    assert out.trace.average_layers == 1 + loaded.layers[0]
    assert out.trace.probes.rows == 0  # no intermediate prediction
    assert out.trace.probes.weights == 3 * (4 * (loaded.hidden_size + 2) + 4)


def test_the_last_confidence_and_the_position_count():
    router = ExitRouter.load(ROUTER)
    state = torch.randn(1, 32)
    answers = [
        router(state, 2, position, torch.tensor([last])) for position, last in ((0.0, 0.0), (0.9, 0.0), (0.0, 1.0))
    ]
    assert len({float(answer) for answer in answers}) == 3


def test_it_drafts_for_verified():
    model = tiny_model(dtype=torch.float64)
    input_ids, mask = prompts(2)
    texts = [
        generate(model, input_ids=input_ids, attention_mask=mask, strategy=strategy, max_new_tokens=8).sequences
        for strategy in (FullDepth(), Verified(LearnedExit(ROUTER)))
    ]
    assert torch.equal(*texts)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: module(width=-1), "width=-1"),
        (lambda: module(error_cost=0.0), "error_cost=0.0"),
        (lambda: module(layers=[2, 5]), "can exit after the layers 0 to 4"),
        (lambda: module(layers=4), "two layers or more"),
        (lambda: LearnedExit(ROUTER, probe_layers=2), "expected a list"),
        (lambda: LearnedExit(ROUTER, threshold=-1.0), "threshold=-1.0"),
        (lambda: applied(LearnedExit(ROUTER, probe_layers=[5])), "not for \\[5\\]"),
        (lambda: applied(LearnedExit(ROUTER), num_layers=4), "made for exits after the layers"),
        (lambda: applied(LearnedExit(__file__)), "not a safetensors file"),
        (lambda: applied(LearnedExit(ROUTER.replace("router", "classifier"))), "not an exit router's"),
    ],
)
def test_bad_settings(made, message):
    with pytest.raises(UserError, match=message):
        made()


def applied(strategy, **sizes):
    with strategy.applied_to(tiny_model(**sizes)):
        pass
