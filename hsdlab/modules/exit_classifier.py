"""ExitClassifierModule: train CALM's early-exit classifier on a frozen model."""

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hsdlab.decoding.exit_classifier import ExitClassifier
from hsdlab.decoding.families import decoder_config
from hsdlab.modules.frozen_exit import ExitExamples, FrozenExitModule


class ExitClassifierModule(FrozenExitModule):
    """Trains one linear layer to tell from a layer's output whether its prediction is already the last layer's.

    This is CALM's second stage, after fine-tuning (arXiv 2207.07061, section 3.5). The model is frozen. The loss is the
    binary cross-entropy, averaged over every layer but the last without weights. It is teacher-forced on the
    references, at the inputs of decode steps. In training, the hidden states are standardised by their mean and
    variance over all layers, since their magnitudes differ by orders between layers. `folded` moves that into the
    weights.

    Logs train/loss. On the validation split it logs val/loss, val/f1, val/auroc, val/calibration_error (means over the
    layers) and val/agreement, the share of steps in which a layer's prediction is the last layer's.

    Args:
        model: A transformers model, decoder-only or encoder-decoder. It is frozen and set to eval mode.
        tokenizer: Its tokenizer.
        max_new_tokens: References are cut to so many tokens; 2 or more.
        learning_rate: Peak of AdamW's learning rate, which falls linearly to 0 over the run.

    Raises:
        UserError: A number out of its range, or a model of one layer.
    """

    made_by = "fit_exit_classifier"
    network = "exit classifier"
    key = "hsdlab_exit_classifier"

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        max_new_tokens: int = 50,
        learning_rate: float = 0.01,
    ) -> None:
        super().__init__(model, tokenizer, max_new_tokens, learning_rate)
        width = decoder_config(model.config).hidden_size
        self.classifier = ExitClassifier(width)
        self.standardise = nn.BatchNorm1d(width, affine=False, momentum=None)

    def log_odds(self, examples: ExitExamples) -> Tensor:
        """Apply the classifier to standardised states: [steps, layers, d] to [steps, layers]."""
        self.standardise.train(self.training)
        flat = self.standardise(examples.states.flatten(0, 1))  # (steps · layers, d)
        return self.classifier(flat).unflatten(0, examples.states.shape[:2])

    def loss(self, log_odds: Tensor, examples: ExitExamples) -> Tensor:
        """Compute the mean over the steps of the unweighted mean over the layers, in nats."""
        return binary_cross_entropy_with_logits(log_odds, examples.agrees.to(log_odds.dtype))

    def folded(self) -> ExitClassifier:
        """Make the classifier for hidden states that are not standardised.

        Returns:
            A frozen copy whose weights contain the standardisation.
        """
        running = self.standardise.state_dict()
        folded = ExitClassifier(self.classifier.hidden_size)
        with torch.no_grad():
            weight = self.classifier.weight / (running["running_var"] + self.standardise.eps).sqrt()  # (1, d)
            folded.weight.copy_(weight)
            folded.bias.copy_(self.classifier.bias - weight @ running["running_mean"])
        return folded.requires_grad_(False)

    finished = folded
