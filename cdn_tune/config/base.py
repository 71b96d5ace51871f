"""The base of all configuration models: frozen, strict, and complete before anything starts."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """A configuration section: unknown keys and wrong types are refused, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, validate_default=True)

    def plain(self) -> dict[str, Any]:
        """Returns the section as plain dicts, lists, numbers and strings, ready for YAML or JSON."""
        return self.model_dump(mode="json")
