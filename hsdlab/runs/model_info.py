"""Which model a measurement is made on."""

from torch import nn

from hsdlab.decoding.families import decoder_parts
from hsdlab.models.quantization import weights_dtype
from hsdlab.records.model_info import ModelInfo


def model_info(model: nn.Module) -> ModelInfo:
    """Describe a model for a record.

    Args:
        model: A decoder-only transformers model, or a peft model around one.

    Returns:
        Its name, class, dtype, device, number of layers and number of parameters.
    """
    parts = decoder_parts(model)
    return ModelInfo(
        name=parts.model.name_or_path,
        class_name=type(parts.model).__name__,
        dtype=weights_dtype(parts.model),
        device=str(parts.model.device),
        num_layers=parts.num_layers,
        parameters=parts.model.num_parameters(),
    )
