"""LearnedExit: a small trained router decides after which layer a token exits."""

from torch import Tensor

from hsdlab.decoding import LayerState
from hsdlab.decoding.exit_router import ExitRouter
from hsdlab.decoding.families import DecoderParts
from hsdlab.errors import UserError
from hsdlab.strategies.probing import ExitRule, ProbingStrategy, check_not_negative, nobody


class LearnedExit(ProbingStrategy):
    """Exit at the first layer at which a trained router is confident enough.

    The router reads the layer's output, the position of the token in the text and its own confidence at the check
    before. It costs far less than an intermediate prediction, since it does not use the head. ``fit-exit-router``
    trains it on the frozen model to tell whether the layer already predicts the token of the last layer. In its loss, a
    wrong exit costs ``error_cost`` decode steps at full depth, and a missed exit costs the layers that it would have
    saved. So the threshold 0.5 exits where that is expected to be cheaper.

    Routers of this kind are known from mixture-of-depths (arXiv 2404.02258) and from learned halting (arXiv
    1603.08983), which train them with the model. Here the model stays as it is, as for CALM's classifier
    (arXiv 2207.07061, section 3.5), which reads the hidden state only and whose loss weighs both errors alike.

    Args:
        router: The router's file (:class:`~hsdlab.decoding.exit_router.ExitRouter`).
        threshold: The confidence from which a sequence exits, 0 or more; from 1 on, full depth.
        probe_layers: Where the router decides: some of the layers for which it was trained. None for all of them.
        exit_rule: Who exits together: ``per_row``, ``min``, ``mean``, ``source_min`` or ``source_mean``, as in CALM.
        late_exit: Read the answer of a check after the next executed layer, so that the host does not wait for the
            device. A sequence then exits one executed layer after the check that decided it.

    Raises:
        UserError: An argument is out of its range.
    """

    def __init__(
        self,
        router: str,
        threshold: float = 0.5,
        probe_layers: list[int] | None = None,
        exit_rule: ExitRule = "per_row",
        late_exit: bool = False,
    ) -> None:
        check_not_negative("LearnedExit", threshold=threshold)
        if isinstance(probe_layers, int):
            raise UserError(
                f"LearnedExit: probe_layers={probe_layers}; expected a list of the router's layers, or None."
            )
        super().__init__(probe_layers, exit_rule=exit_rule, late_exit=late_exit)
        self.router = router
        self.threshold = threshold
        self._router: ExitRouter | None = None

    def check_model(self, parts: DecoderParts) -> None:
        """Read the router; refuse a width or layers that the model does not have, and layers that the router lacks."""
        router = ExitRouter.load(self.router, parts.hidden_size, parts.num_layers).to(parts.model.device)
        named = self.probe_layers if isinstance(self.probe_layers, list) else []
        unknown = sorted(set(named) - set(router.layers))
        if unknown:
            raise UserError(
                f"LearnedExit: probe_layers={self.probe_layers}; the router was trained for the layers "
                f"{list(router.layers)}, not for {unknown}."
            )
        self._router = router
        super().check_model(parts)

    @property
    def reads_predictions(self) -> bool:
        """The router reads hidden states only."""
        return False

    def checked_layers(self, parts: DecoderParts) -> int | list[int]:
        """Give the layers of the router, where ``probe_layers`` names none."""
        if self._router is not None and self.probe_layers is None:
            return list(self._router.layers)
        return super().checked_layers(parts)

    def should_exit(self, state: LayerState) -> Tensor:
        """Find the sequences for which the router reaches the threshold; a threshold of 1 or more asks it nothing."""
        if self.threshold >= 1 or not self.probes(state):
            return nobody(state)
        if self._router is None:
            raise RuntimeError("LearnedExit reads its router when it meets a model: use generate() or applied_to().")
        last = state.recall("confidence")
        if last is None:
            last = self._router.layer_biases.new_zeros(len(state.output))
        position = state.step / state.max_steps
        confidence = state.probe.apply(self._router, state.layer, position, last).sigmoid()
        state.keep("confidence", confidence)
        return self.exits(state, confidence, self.threshold)

    def never_skip(self) -> "LearnedExit":
        """Set the threshold to 1."""
        return self.changed(threshold=1.0)
