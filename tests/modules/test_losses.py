import math

import pytest
import torch

from hsdlab.modules.losses import agreement, distilled_loss, perplexity, reference_loss

VOCABULARY = 7


@pytest.fixture
def batch():
    """Two rows, left-padded; the references are the last 3 and the last 1 tokens."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 6, VOCABULARY, generator=generator, dtype=torch.float64)
    input_ids = torch.randint(VOCABULARY, (2, 6), generator=generator)
    target_mask = torch.tensor([[0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 0, 1]]).bool()
    return logits, input_ids, target_mask


def test_it_is_the_mean_over_the_references_tokens(batch):
    logits, input_ids, _ = batch
    tokens = [(0, 3), (0, 4), (0, 5), (1, 5)]  # each weighs the same, whatever its row
    slow = [-math.log(logits[row, at - 1].softmax(-1)[input_ids[row, at]].item()) for row, at in tokens]
    assert reference_loss(*batch).item() == pytest.approx(sum(slow) / 4, rel=1e-12)


def test_prompt_and_padding_count_nothing(batch):
    logits, input_ids, target_mask = batch
    others = logits.clone()
    others[:, :2] = 50.0
    others[1, :4] = -3.0
    ids = input_ids.clone()
    ids[:, :3] = (ids[:, :3] + 1) % VOCABULARY
    assert reference_loss(others, ids, target_mask) == reference_loss(logits, input_ids, target_mask)


def test_the_last_token_is_learned(batch):
    logits, input_ids, target_mask = batch
    sure = logits.clone()
    sure[0, 4, input_ids[0, 5]] += 100
    assert reference_loss(sure, input_ids, target_mask) < reference_loss(*batch)


def test_low_precision_is_summed_in_float32(batch):
    logits, input_ids, target_mask = batch
    loss = reference_loss(logits.bfloat16(), input_ids, target_mask)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(reference_loss(*batch).item(), rel=1e-2)


def test_distillation_mixes_cross_entropy_with_the_divergence_from_the_teacher(batch):
    logits, input_ids, target_mask = batch
    teacher = logits.flip(-1)
    share = torch.tensor([0.25, 0.0], dtype=torch.float64)  # the second row learns from its reference alone
    slow = 0.0
    for row, at in [(0, 3), (0, 4), (0, 5), (1, 5)]:
        model, taught = (each[row, at - 1].softmax(-1) for each in (logits, teacher))
        divergence = (taught * (taught.log() - model.log())).sum().item()
        slow += (1 - share[row].item()) * -math.log(model[input_ids[row, at]].item()) + share[row].item() * divergence
    assert distilled_loss(logits, teacher, share, input_ids, target_mask).item() == pytest.approx(slow / 4, rel=1e-12)
    nothing = distilled_loss(logits, teacher, torch.zeros(2), input_ids, target_mask)
    assert nothing.item() == pytest.approx(reference_loss(*batch).item(), rel=1e-12)
    own = distilled_loss(logits, logits, torch.ones(2), input_ids, target_mask)
    assert own.item() == pytest.approx(0.0, abs=1e-12)


def test_no_gradient_goes_to_the_teacher(batch):
    logits, input_ids, target_mask = batch
    model, teacher = logits.clone().requires_grad_(), logits.flip(-1).requires_grad_()
    distilled_loss(model, teacher, torch.ones(2), input_ids, target_mask).backward()
    assert model.grad.abs().sum() > 0
    assert teacher.grad is None


def test_perplexity_of_a_uniform_guess_is_the_vocabulary(batch):
    _, input_ids, target_mask = batch
    loss = reference_loss(torch.zeros(2, 6, VOCABULARY), input_ids, target_mask)
    assert perplexity(loss).item() == pytest.approx(VOCABULARY)


def test_what_does_not_fit_is_an_error(batch):
    logits, input_ids, target_mask = batch
    with pytest.raises(ValueError, match="expected rows × length × vocabulary"):
        reference_loss(logits, input_ids[:, :4], target_mask)
    with pytest.raises(ValueError, match=r"torch\.int64"):
        reference_loss(logits, input_ids, target_mask.long())
    with pytest.raises(ValueError, match="marks no token"):
        reference_loss(logits, input_ids, torch.zeros_like(target_mask))


def test_agreement_compares_the_most_probable_tokens(batch):
    logits, _, target_mask = batch
    other = logits.clone()
    other[0, 3] = -other[0, 3]  # predicts token 4 of the first row
    other[1, 2] = -other[1, 2]  # predicts a token of the prompt
    assert agreement(logits, other, target_mask).tolist() == [True, False, True, True]
