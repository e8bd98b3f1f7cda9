"""What config.json says of an encoder: its entries, checked, as a family's record."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from jaxval.errors import EncoderError

_Record = TypeVar("_Record")


@dataclass(frozen=True)
class Limit:
    """How many tokens a text may have, and of what the model has so many."""

    tokens: int
    what: str = "positions"

    def __str__(self) -> str:
        return f"{self.tokens} {self.what}"


def read(
    record: type[_Record],
    config: Mapping[str, Any],
    *,
    renamed: Mapping[str, str] | None = None,
    **given: Any,
) -> _Record:
    """The record made of the entries that it has fields for; null is as good as absent.

    Args:
      record: a dataclass with a default for each field.
      config: config.json. Entries that the record does not know do not matter.
      renamed: entry -> field, where the two have different names.
      given: fields that stand for entries which config.json lacks.
    """
    names = renamed or {}
    entries = {names.get(name, name): value for name, value in config.items()}
    known = {field.name for field in fields(record)}  # type: ignore[arg-type]
    said = {name: entries[name] for name in known & set(entries) if entries[name] is not None}
    return record(**{**given, **said})


def require(config: Mapping[str, Any], name: str, allowed: Iterable[Any], default: Any) -> None:
    """Raises EncoderError unless an entry, or its default, is one of those allowed."""
    value, allowed = config.get(name, default), list(allowed)
    if value not in allowed:
        raise EncoderError(
            f"{name} {value!r} is not supported by the {config.get('model_type')} encoder "
            f"(it takes {', '.join(map(repr, allowed))}); bring your own module with `encoder`"
        )


def require_multiple(name: str, number: int, by: str, divisor: int) -> None:
    """Raises EncoderError unless the number is a multiple of the divisor."""
    if number % divisor:
        raise EncoderError(
            f"{name} {number} is no multiple of {by} {divisor}; correct one of them"
        )
