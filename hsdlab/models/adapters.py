"""LoRA adapters: which base model they name, and how they are merged into it."""

from pathlib import Path

from transformers import PreTrainedModel

from hsdlab.errors import UserError


def base_of(adapter: str, revision: str | None) -> tuple[str, str | None]:
    """Read from an adapter which model, and which revision of it, it was trained on."""
    from peft import PeftConfig  # slow to import, seldom needed

    config = PeftConfig.from_pretrained(str(Path(adapter).expanduser()))
    base = config.base_model_name_or_path
    if not base:
        raise UserError(f"{adapter} does not name its base model; use load_model(base, adapter={adapter!r})")
    return base, revision or config.revision


def merge(model: PreTrainedModel, adapter: str) -> PreTrainedModel:
    """Add the adapter's weights into the model's own."""
    from peft import PeftModel

    folder = Path(adapter).expanduser()
    if not (folder / "adapter_config.json").is_file():
        raise FileNotFoundError(f"no adapter at {folder.absolute()}: expected a folder with adapter_config.json")
    adapted = PeftModel.from_pretrained(model, str(folder))
    if not hasattr(adapted, "merge_and_unload"):
        raise UserError(f"{adapter} cannot be merged: it is {adapted.peft_type.value}, not LoRA")
    merged = adapted.merge_and_unload()
    # peft froze the weights. Frozen, they could not be trained further, and torch's linear copies a frozen weight once
    # for each row of an input that is a slice, as the head's is in a prompt pass: seconds for a batch of 64.
    return merged.requires_grad_(True)
