"""Training for exits: which layers, distillation, a sample of the tokens, adapters, and what is exported."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy, log_softmax

from hsdlab import HSD, FullDepth, UserError, load_model
from hsdlab.decoding.families import decoder_parts, feed_forward
from hsdlab.decoding.layer_outputs import layer_outputs
from hsdlab.decoding.replay import replay
from hsdlab.exits import FILE, attach_exits, last_layers
from hsdlab.modules import DeepSupervision, LayerDropout, LoRA
from hsdlab.modules.deep_supervision import supervised_loss
from tests.modules.test_deep_supervision import batch_of_pairs
from tests.modules.test_finetune import Recorder, Toy, last, module, trainer
from tests.tiny_checkpoints import tiny_llama

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
EXITS = DeepSupervision("uniform", layers=[0, 1], distillation=0.5, positions=0.5, adapter_rank=2)


def test_the_exits_and_their_weights():
    assert DeepSupervision(layers=6).exits(30) == [5, 11, 17, 23]
    assert DeepSupervision(layers=[7, 3]).exits(9) == [3, 7]
    by_hand = DeepSupervision([1.0, 2.0, 5.0], layers=[1, 3], scale=0.5).layer_weights(6, batch=0)
    assert by_hand == pytest.approx([0, 0.5 / 6.5, 0, 1 / 6.5, 0, 5 / 6.5])
    turns = [DeepSupervision("uniform", layers=2, rotation=2).layer_weights(8, batch) for batch in range(2)]
    assert [[layer for layer, weight in enumerate(each) if weight] for each in turns] == [[1, 5, 7], [3, 7]]


def test_the_loss_is_that_of_the_last_layers_prediction_and_the_text():
    batch, tested = batch_of_pairs(), module(tiny_llama().double(), deep_supervision=DeepSupervision())
    tested.model.eval()
    supervision = DeepSupervision(layers=[1], distillation=0.25)
    with layer_outputs(tested.model) as outputs:
        logits = tested.training_logits(batch)
    loss = supervised_loss(tested.model, outputs, logits, batch, [0.0, 0.5, 0.5], supervision)
    scored = logits.shape[1]
    targets = batch["target_mask"][:, -scored:][:, 1:]
    tokens = batch["input_ids"][:, -scored:][:, 1:][targets]
    exit_logits = decoder_parts(tested.model).logits(outputs[1][:, -scored:-1][targets])
    final = logits[:, :-1][targets]
    p = final.softmax(dim=-1)
    divergence = (p * (p.log() - log_softmax(exit_logits, dim=-1))).sum(dim=-1).mean()
    by_hand = 0.5 * cross_entropy(final, tokens) + 0.5 * (0.75 * cross_entropy(exit_logits, tokens) + 0.25 * divergence)
    assert loss.item() == pytest.approx(by_hand.item(), rel=1e-12)


def test_a_sample_of_the_tokens_has_the_loss_of_all_on_average():
    batch, tested = batch_of_pairs(), module(deep_supervision=DeepSupervision())
    tested.model.eval()
    with torch.no_grad(), layer_outputs(tested.model) as outputs:
        logits = tested.training_logits(batch)

        def loss(positions):
            supervision = DeepSupervision(distillation=0.5, positions=positions)
            return supervised_loss(tested.model, outputs, logits, batch, [0.5, 0.0, 0.5], supervision).item()

        torch.manual_seed(0)
        sampled = torch.tensor([loss(0.3) for _ in range(300)])
        assert sampled.mean().item() == pytest.approx(loss(1.0), abs=4 * sampled.std().item() / 300**0.5)
    assert sampled.std() > 0


@pytest.mark.parametrize("lora", [None, LoRA(r=4)], ids=["full", "lora"])
def test_the_adapters_learn_go_on_after_a_kill_and_are_loaded_with_the_model(lora, tmp_path):
    options = {"deep_supervision": EXITS, "layer_dropout": LayerDropout(0.2)}
    base = tiny_llama()
    base.save_pretrained(tmp_path / "base")
    whole, after = Recorder(), Recorder()
    base.name_or_path = str(tmp_path / "base")
    tested = module(base, lora=lora, **options)
    trainer(whole, max_epochs=1).fit(tested, datamodule=Toy())
    killed = trainer(Recorder(stop_after=4), last(tmp_path), max_epochs=1, enable_checkpointing=True)
    with pytest.raises(InterruptedError):
        killed.fit(module(lora=lora, **options), datamodule=Toy())
    trainer(after, max_epochs=1).fit(module(lora=lora, **options), datamodule=Toy(), ckpt_path=tmp_path / "last.ckpt")
    for number, (loss, _, _) in after.steps.items():
        assert loss == pytest.approx(whole.steps[number][0], abs=1e-6)

    trained = decoder_parts(tested.model).exits
    assert all(weight.abs().sum() > 0 for weight in trained.parameters())
    tested.export(tmp_path / "model")
    loaded, _ = load_model(tmp_path / "model", device="cpu")
    exits = decoder_parts(loaded).exits
    assert exits.layers == (0, 1)
    state = torch.randn(3, exits.size)
    for layer in range(3):
        torch.testing.assert_close(exits(state, layer), trained(state, layer))
    files = {path.name for path in (tmp_path / "model").iterdir()}
    assert FILE in files
    for file in files - {FILE}:
        assert b"hsdlab_exits" not in (tmp_path / "model" / file).read_bytes()


def test_tokens_exit_where_they_draw_and_prompts_run_to_the_deepest_exit():
    supervision, targets = DeepSupervision(layers=[1, 3], exiting=1.0), torch.ones(400, 6, dtype=torch.bool)
    targets[:, :2] = False
    deepest = set()
    for seed in range(20):
        torch.manual_seed(seed)
        executed = supervision.draw_exits(torch.ones(400, 6, 6, dtype=torch.bool), targets)
        last = executed.sum(dim=-1) - 1
        assert torch.equal(executed, torch.arange(6) <= last[..., None])
        deepest.add(int(last[0, 0]))
        assert (last[:, :2] == last.max()).all()
        if last.max() == 5:  # with p uniform, E[p] = 1/2, E[(1 - p) p] = 1/6 and E[(1 - p)²] = 1/3
            shares = [(last[:, 2:] == layer).double().mean().item() for layer in (1, 3, 5)]
            assert shares == pytest.approx([1 / 2, 1 / 6, 1 / 3], abs=0.06)
            rows = (last[:, 2:] == 1).double().mean(dim=1)  # an example has a probability of its own
            assert rows.std() > 0.25
    assert deepest == {1, 3, 5}


@pytest.mark.parametrize("deepest", [1, 2])
def test_a_token_that_exits_is_supervised_up_to_its_exit_as_replay_has_it(deepest):
    """With the layers that `replay` runs, each token's own exit counts as the last layer, and the exits before it."""
    batch, tested = batch_of_pairs(), module(tiny_llama().double(), deep_supervision=DeepSupervision(layers=[0, 1]))
    tested.model.eval()
    last = torch.randint(deepest + 1, batch["input_ids"].shape).where(batch["target_mask"], deepest)
    supervision = DeepSupervision(layers=[0, 1], distillation=0.25)
    with layer_outputs(tested.model) as outputs:
        executed = torch.arange(3) <= last[..., None]
        logits = tested.training_logits(batch, executed=executed)
    loss = supervised_loss(tested.model, outputs, logits, batch, [0.2, 0.3, 0.5], supervision, executed)

    targets, ids = batch["target_mask"][:, 1:], batch["input_ids"][:, 1:]
    tokens, exits = ids[targets], last[:, :-1][targets]

    def predicted(up_to):
        """The predictions of tokens that exit after a layer at the latest."""
        capped = last.clamp(max=up_to)
        executed = torch.arange(3) <= capped[..., None]
        mask = batch["attention_mask"]
        return replay(tested.model, input_ids=batch["input_ids"], attention_mask=mask, executed=executed)[:, :-1][
            targets
        ]

    own = predicted(2)
    by_hand = 0.5 * cross_entropy(own, tokens)
    for layer, weight in ((0, 0.2), (1, 0.3)):
        reach = (exits >= layer) & batch["target_mask"][:, :-1][targets]  # not at the end of the prompt
        # up to a token's exit, what the others do above it changes nothing: attention in layer l reads states below l
        at_exit = predicted(layer)[reach]
        p = own[reach].softmax(dim=-1)
        divergence = (p * (p.log() - log_softmax(at_exit, dim=-1))).sum(dim=-1).mean()
        by_hand = by_hand + weight * (0.75 * cross_entropy(at_exit, tokens[reach]) + 0.25 * divergence)
    assert loss.item() == pytest.approx(by_hand.item(), rel=1e-12)


@pytest.mark.parametrize("parts", [1, 2])
def test_under_a_schedule_tokens_exit_at_exits_that_they_run(parts):
    """Exits 2 and 4 with the layers 0, 2, 4, 6, 7 of a schedule, layer 4 only in some tokens: 3 is no exit of it."""
    supervision = DeepSupervision(layers=[2, 3, 4], exiting=1.0)
    targets, executed = torch.ones(200, 5, dtype=torch.bool), torch.zeros(200, 5, 8, dtype=torch.bool)
    targets[:, 0], executed[:, 0] = False, True  # the prompt
    executed[:, 1:, [0, 2, 6, 7]] = True
    executed[:, 1:3, 4] = True
    scheduled = executed if parts == 1 else torch.stack([executed, torch.zeros_like(executed)], dim=-1)
    seen = set()
    for seed in range(20):
        torch.manual_seed(seed)
        drawn = supervision.draw_exits(scheduled, targets)
        drawn = drawn if parts == 1 else drawn.any(dim=-1)
        deepest = int(drawn[0, 0].nonzero().max())
        seen.add(deepest)
        assert not (drawn & ~executed).any()
        last = last_layers(drawn)
        assert (last[:, 0] == deepest).all()
        exits = {2: {2}, 7: {2, 4, 7}}[deepest]
        assert set(last[:, 1:3].unique().tolist()) == exits
        assert set(last[:, 3:].unique().tolist()) == exits - {4}
    assert seen == {2, 7}, "layer 4 is no exit of all tokens"


def test_exits_and_schedules_are_trained_together():
    """Also the exit that the second strategy leaves out."""
    supervision = DeepSupervision("uniform", layers=[0, 1], exiting=0.5, adapter_rank=2)
    tested = module(max_new_tokens=30, skip_strategies=[FullDepth(), HSD(1, 0, 1)], deep_supervision=supervision)
    trainer(max_epochs=2).fit(tested, datamodule=Toy())
    logged = {name: float(value) for name, value in tested.trainer.callback_metrics.items()}
    exits = decoder_parts(tested.model).exits
    assert all(exit.up.abs().sum() > 0 for exit in exits.adapters.values())
    assert {"val/skip_loss", "val/supervised_loss", "val/loss"} <= logged.keys()
    assert all(math.isfinite(value) for value in logged.values())


def test_a_training_whose_tokens_exit_learns_and_runs_no_layer_above_the_deepest_exit():
    calls = []
    tested = module(deep_supervision=DeepSupervision("uniform", layers=[0, 1], exiting=1.0, adapter_rank=2))
    for index, layer in enumerate(decoder_parts(tested.model).layers):
        feed_forward(layer).register_forward_hook(lambda *_, i=index: calls.append(i) if tested.training else None)
    trainer(run := Recorder(), max_epochs=4).fit(tested, datamodule=Toy())
    losses = [loss for loss, *_ in run.steps.values()]
    assert sum(losses[-6:]) < 0.8 * sum(losses[:6])
    assert calls.count(0) == len(losses) > calls.count(1) > calls.count(2) > 0


def test_exits_that_a_model_has_are_trained_further_and_no_others():
    model = tiny_llama()
    attach_exits(model, decoder_parts(module(deep_supervision=EXITS).model).exits)
    decoder_parts(model).exits.requires_grad_(False)
    with pytest.raises(UserError, match=r"has exits after the layers \[0, 1\] with adapter_rank=2"):
        module(model, deep_supervision=DeepSupervision(layers=[1]))
    tested = module(model, deep_supervision=EXITS)
    assert [name for name in tested.trained_names() if "hsdlab_exits" in name]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": [2]}, "layers from 0 to 1"),
        ({"layers": 0}, r"deep_supervision\.layers=0"),
        ({"layers": 3}, r"deep_supervision\.layers=3"),
        ({"weights": [1.0, 2.0]}, "has 2 numbers; expected one for each of the 2 exits"),
        ({"weights": [0.0, 1.0, 1.0]}, "numbers above 0"),
        ({"distillation": 1.5}, "distillation=1.5"),
        ({"positions": 0.0}, "positions=0.0"),
        ({"exiting": 1.5}, "exiting=1.5"),
        ({"adapter_rank": -1}, "adapter_rank=-1"),
    ],
)
def test_bad_settings(options, message):
    with pytest.raises(UserError, match=message):
        module(deep_supervision=DeepSupervision(**options))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_adapters_beside_lora_train_in_float32_as_its_matrices_do(dtype):
    """A step of 1e-4 is lost on numbers near 1 in bfloat16, and float16 makes Adam's small squares 0."""
    tested = module(tiny_llama().to(dtype), learning_rate=1e-4, lora=LoRA(r=2), deep_supervision=EXITS)
    exits = decoder_parts(tested.model).exits
    before = {name: weight.detach().clone() for name, weight in exits.named_parameters()}
    trainer(max_epochs=2).fit(tested, datamodule=Toy())
    for name, weight in exits.named_parameters():
        assert weight.dtype == torch.float32
        assert weight.isfinite().all()
        assert (weight != before[name]).double().mean() > 0.9, name


def test_the_end_of_the_prompt_teaches_no_exit_that_the_schedule_leaves_out():
    """It runs all layers, also layer 1, which HSD(1, 0, 1) runs for no token of the text."""
    batch, supervision = batch_of_pairs(), DeepSupervision("uniform", layers=[0, 1], adapter_rank=2)
    tested = module(tiny_llama(), max_new_tokens=30, deep_supervision=supervision)
    executed = torch.ones(*batch["input_ids"].shape, 3, dtype=torch.bool)
    executed[..., 1] = ~batch["target_mask"]
    with layer_outputs(tested.model) as outputs:
        logits = tested.training_logits(batch, executed=executed)
    supervised_loss(tested.model, outputs, logits, batch, [0.3, 0.3, 0.4], supervision, executed).backward()
    learned = {
        layer: exit.gain.grad.abs().sum().item() for layer, exit in decoder_parts(tested.model).exits.adapters.items()
    }
    assert learned["0"] > 0
    assert learned["1"] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": [4, 2], "weights": [1.0, 2.0, 3.0]}, "name each layer once, in ascending order"),
        ({"layers": [2, 2, 4], "weights": [1.0, 2.0, 3.0]}, "name each layer once, in ascending order"),
        ({"weights": [math.nan, 1.0]}, "expected finite numbers above 0"),
        ({"weights": [math.inf, 1.0]}, "expected finite numbers above 0"),
    ],
)
def test_weights_have_one_order_and_are_finite(options, message):
    with pytest.raises(UserError, match=message):
        DeepSupervision(**options)


def test_exits_that_no_drawn_strategy_runs_are_refused():
    supervision = DeepSupervision(layers=[0, 1])
    with pytest.raises(UserError, match=r"none of the skip_strategies runs the layers \[1\]"):
        module(max_new_tokens=30, skip_strategies=[HSD(1, 0, 1)], deep_supervision=supervision)
    module(max_new_tokens=30, skip_strategies=[HSD(1, 0, 1), FullDepth()], deep_supervision=supervision)
