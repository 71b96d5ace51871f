"""The base of all configuration models: frozen, strict, and complete before anything starts."""

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(ge=1)]
PositiveTuple = Annotated[tuple[Positive, ...], Field(strict=False, min_length=1)]


class Frozen(BaseModel):
    """A configuration section: unknown keys and wrong types are refused, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, validate_default=True)

    def plain(self) -> dict[str, Any]:
        """Returns the section as plain dicts, lists, numbers and strings, ready for YAML or JSON."""
        return self.model_dump(mode="json")

    @classmethod
    def variants(cls, family: str | None = None) -> Sequence[type["Frozen"]]:  # noqa: ARG003 - for sections of a family
        """Returns the sections that may stand where this one is declared: itself, or those of the model families.

        Args:
            family: Only the section of this family.
        """
        return (cls,)
