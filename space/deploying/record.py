"""What a deployment came to."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class Record:
    """result: planned, deployed, live (--verify-only), rolled_back, fallback or failed; what serves now."""

    result: str
    code: int
    reason: str = ""
    space: str | None = None
    address: str | None = None
    commit: str | None = None  # of the Space
    health: dict[str, Any] = field(default_factory=dict)  # as the Space told it
    stages: list[str] = field(default_factory=list)

    @property
    def line(self) -> str:
        """The result for a person."""
        who = f"{self.health.get('model')} version {self.health.get('version')}" if self.health else ""
        return " ".join(filter(None, [f"{self.result}:", self.space, self.commit and f"at {self.commit[:12]}",
                                      self.address, who, self.reason and f"({self.reason})"]))

    def write(self, path: Path) -> None:
        """As JSON, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(f".{path.name}.{os.getpid()}")
        new.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="ascii")
        new.replace(path)
