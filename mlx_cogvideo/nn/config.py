"""The base of the network configurations, read from a component's ``config.json``."""

from dataclasses import asdict, dataclass, fields
from typing import Any, Self


@dataclass(frozen=True)
class Config:
    """A network's configuration: upstream's field names and upstream's defaults."""

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Takes the known fields of a ``config.json``; others don't change the network."""
        known = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in values.items() if name in known})

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
