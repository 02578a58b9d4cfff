"""StrategyConfig: a strategy as a config names it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hsdlab.records.document import JsonObject, JsonValue


@dataclass(frozen=True)
class StrategyConfig:
    """A class and its arguments, as `--skip` and configs take them.

    Attributes:
        class_path: Dotted path of the class.
        init_args: Its arguments.
    """

    class_path: str
    init_args: JsonObject = field(default_factory=dict)

    @classmethod
    def of(cls, config: Mapping[str, JsonValue]) -> StrategyConfig:
        """Return what `SkipStrategy.config()` gives as a record."""
        return cls(str(config["class_path"]), dict(config["init_args"]))

    @property
    def class_name(self) -> str:
        """The class without its module."""
        return self.class_path.rpartition(".")[2]

    def as_config(self) -> dict[str, Any]:
        """Return what a YAML config holds."""
        return {"class_path": self.class_path, "init_args": dict(self.init_args)}
