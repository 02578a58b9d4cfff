"""SubLayerStrategy: the same attention and MLP sub-layers in every decode step."""

from typing import Any, Literal, Self

from hsdlab.decoding import SubLayers
from hsdlab.errors import UserError
from hsdlab.strategies.schedule import ScheduledStrategy, Trial


class SubLayerStrategy(ScheduledStrategy):
    """Skip the attention of some layers and the MLP of some layers in every decode step; the prompt runs all.

    This is the draft model of Draft & Verify (Zhang et al. 2023, arXiv 2309.08168), which chooses the two lists by
    Bayesian optimisation. Here, ``evaluate.py tune`` does. Each sub-layer counts as half a layer.

    Args:
        skipped_attention: Indices of the layers whose attention is skipped. "auto" skips that of every second layer,
            1, 3, 5 … except the last layer. None skips none.
        skipped_mlp: Indices of the layers whose MLP is skipped; None skips none.

    Raises:
        UserError: A list holds something else than indices from 0 on, or an index twice.

    Example:
        >>> SubLayerStrategy(skipped_attention=[1, 2], skipped_mlp=[2]).layers_at(step=0, num_layers=4, max_steps=10)
        SubLayers(attention=[0, 3], mlp=[0, 1, 3])
    """

    def __init__(
        self, skipped_attention: list[int] | Literal["auto"] | None = "auto", skipped_mlp: list[int] | None = None
    ) -> None:
        if skipped_attention != "auto":
            _check("skipped_attention", skipped_attention)
        _check("skipped_mlp", skipped_mlp)
        self.skipped_attention = skipped_attention
        self.skipped_mlp = skipped_mlp

    def layers_at(self, step: int, num_layers: int, max_steps: int) -> SubLayers:
        """Give the sub-layers that are left, ascending."""
        skipped = self.resolved(num_layers).parameters()
        for name, layers in skipped.items():
            beyond = [layer for layer in layers if layer >= num_layers]
            if beyond:
                raise UserError(
                    f"SubLayerStrategy: {name} lists {beyond}; this model has layers 0 to {num_layers - 1}."
                )
        attention, mlp = ([i for i in range(num_layers) if i not in layers] for layers in skipped.values())
        return SubLayers(attention, mlp)

    @classmethod
    def propose(cls, trial: Trial, num_layers: int, max_steps: int) -> Self:
        """Propose any of the sub-layers, except those of layer 0."""
        attention, mlp = (
            [layer for layer in range(1, num_layers) if trial.suggest_int(f"{part}_{layer}", 0, 1)]
            for part in ("attention", "mlp")
        )
        return cls(attention, mlp)

    def resolved(self, num_layers: int) -> Self:
        """Fill in both lists."""
        every_second = list(range(1, num_layers - 1, 2))
        attention = every_second if self.skipped_attention == "auto" else self.skipped_attention
        return self._with(skipped_attention=attention or [], skipped_mlp=self.skipped_mlp or [])

    def never_skip(self) -> "SubLayerStrategy":
        """Skip nothing."""
        return SubLayerStrategy(None, None)


def _check(name: str, layers: Any) -> None:
    if layers is None:
        return
    wrong = not isinstance(layers, list) or any(type(layer) is not int or layer < 0 for layer in layers)
    if wrong or len(set(layers)) < len(layers):
        raise UserError(
            f"SubLayerStrategy: {name}={layers!r}; expected a list of layers from 0 on, each once, or None."
        )
