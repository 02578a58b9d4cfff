"""StrategyConfig: a strategy as a configuration names it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hsdlab.records.document import JsonObject, JsonValue


@dataclass(frozen=True)
class StrategyConfig:
    """A strategy's class and arguments, as `--skip` and configurations take them.

    Attributes:
        class_path: Dotted path of the class.
        init_args: Argument to value, defaults included.
    """

    class_path: str
    init_args: JsonObject = field(default_factory=dict)

    @classmethod
    def of(cls, config: Mapping[str, JsonValue]) -> StrategyConfig:
        """Make the record from a configuration.

        Args:
            config: What `SkipStrategy.config()` returns: "class_path" and "init_args".

        Returns:
            The record.
        """
        return cls(str(config["class_path"]), dict(config["init_args"]))

    @property
    def class_name(self) -> str:
        """The class without its module."""
        return self.class_path.rpartition(".")[2]

    def as_config(self) -> dict[str, Any]:
        """Undo `of`.

        Returns:
            "class_path" and "init_args", as a YAML configuration holds them.
        """
        return {"class_path": self.class_path, "init_args": dict(self.init_args)}
