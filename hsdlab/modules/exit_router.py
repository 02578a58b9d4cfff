"""ExitRouterModule: train the router of LearnedExit on a frozen model."""

import copy

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hsdlab.decoding.exit_router import ExitRouter
from hsdlab.decoding.families import decoder_config, decoder_parts
from hsdlab.errors import UserError
from hsdlab.modules.frozen_exit import ExitExamples, FrozenExitModule


class ExitRouterModule(FrozenExitModule):
    """Trains a router to decide after which layer a token exits, from hidden state, position and last confidence.

    The model is frozen. It is teacher-forced on the references, at the inputs of decode steps; with `data.targets`
    these are the model's own texts. The confidence of the check before is the router's own in the same step.

    The loss is a binary cross-entropy in which each error has its price, in decode steps at full depth. An exit before
    the layer predicts the last layer's token costs ``error_cost``. Not to exit where it does costs the share of the
    layers that are above. If p is the probability that the layer's token is the last one's, the trained router reaches
    0.5 where p · saved ≥ (1 - p) · ``error_cost``.

    Logs what `FrozenExitModule` logs. The figures of AUROC and calibration are those of p.

    Args:
        model: A transformers language model. It is frozen and set to eval mode.
        tokenizer: Its tokenizer.
        max_new_tokens: References are cut to so many tokens; 2 or more. T of the position t / T.
        learning_rate: Peak of AdamW's learning rate, which falls linearly to 0 over the run.
        layers: The layers after which it decides: k for every k-th, or a list. By default those at which the model was
            trained to exit, or all but the last.
        width: Hidden units between the router's two layers. 0 makes it one linear layer.
        error_cost: The price of a wrong token, more than 0; of the order of the tokens that it spoils.

    Raises:
        UserError: A number out of its range, a model of one layer, or a layer that it does not have.
    """

    made_by = "fit_exit_router"
    network = "exit router"
    key = "hsdlab_exit_router"

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        max_new_tokens: int = 50,
        learning_rate: float = 0.003,
        layers: int | list[int] | None = None,
        width: int = 32,
        error_cost: float = 5.0,
    ) -> None:
        if width < 0:
            raise UserError(f"width={width}: expected 0 (one linear layer) or more.")
        if not 0 < error_cost < float("inf"):
            raise UserError(f"error_cost={error_cost}: expected a finite number above 0.")
        super().__init__(model, tokenizer, max_new_tokens, learning_rate, _exits(model, layers))
        config = decoder_config(model.config)
        self.error_cost = error_cost
        self.router = ExitRouter(config.hidden_size, self.layers, width)
        above = config.num_hidden_layers - 1 - torch.tensor(self.layers)
        self.register_buffer("saved", above / config.num_hidden_layers, persistent=False)  # (layers,)
        self._identity |= {"layers": list(self.layers), "width": width, "error_cost": error_cost}

    def log_odds(self, examples: ExitExamples) -> Tensor:
        """Apply the router layer by layer, as a decode does: [steps, layers, d] to [steps, layers]."""
        position = examples.numbers / self.max_new_tokens  # (steps,)
        last = torch.zeros_like(position)
        log_odds = []
        for layer, states in zip(self.layers, examples.states.unbind(dim=1), strict=True):
            log_odds.append(self.router(states, layer, position, last))
            last = log_odds[-1].detach().sigmoid()
        return torch.stack(log_odds, dim=1)

    def loss(self, log_odds: Tensor, examples: ExitExamples) -> Tensor:
        """Compute the mean price over steps and layers, in nats of a decode step at full depth."""
        prices = torch.where(examples.agrees, self.saved, self.error_cost)  # (steps, layers)
        return binary_cross_entropy_with_logits(log_odds, examples.agrees.to(log_odds.dtype), weight=prices)

    def probability(self, log_odds: Tensor) -> Tensor:
        """Take the prices out of the router's answer, which remains the probability that the tokens are the same."""
        return (log_odds + (self.error_cost / self.saved).log()).sigmoid()

    def finished(self) -> ExitRouter:
        """Copy the router.

        Returns:
            A frozen copy on the CPU.
        """
        return copy.deepcopy(self.router).cpu().requires_grad_(False)


def _exits(model: PreTrainedModel, layers: int | list[int] | None) -> list[int] | None:
    """List the layers of ``layers``; None for all but the last."""
    exits = decoder_parts(model).exits
    if layers is None and exits is not None:
        return list(exits.layers)
    if not isinstance(layers, int):
        return layers
    num_layers = decoder_config(model.config).num_hidden_layers
    if not 1 <= layers < num_layers:
        raise UserError(f"layers={layers}: expected k, from 1 to {num_layers - 1}, for every k-th layer, or a list.")
    return list(range(layers - 1, num_layers - 1, layers))
