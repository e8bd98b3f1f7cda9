"""Reading and checking of the entries of config.json."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from jaxval.errors import EncoderError

_Record = TypeVar("_Record")


@dataclass(frozen=True)
class Limit:
    """The maximum number of tokens in a text.

    Attributes:
      tokens: The number, special tokens included.
      what: What limits it, for messages, e.g. `positions`.
    """

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
    """Returns a record of those entries for which it has a field.

    Args:
      record: A dataclass with a default for each field.
      config: The content of config.json. An entry that is null counts as missing.
      renamed: Entry -> field, where their names differ.
      **given: Values of fields whose entries are missing, in place of the record's defaults.
    """
    names = renamed or {}
    entries = {names.get(name, name): value for name, value in config.items()}
    known = {field.name for field in fields(record)}  # type: ignore[arg-type]
    values = {name: entries[name] for name in known & set(entries) if entries[name] is not None}
    return record(**{**given, **values})


def require(config: Mapping[str, Any], name: str, allowed: Iterable[Any], default: Any) -> None:
    """Raises EncoderError if an entry is not an allowed value.

    Args:
      config: The content of config.json.
      name: The name of the entry.
      allowed: The allowed values.
      default: The value of a missing entry.
    """
    value, allowed = config.get(name, default), list(allowed)
    if value not in allowed:
        raise EncoderError(
            f"{name} {value!r} is not supported by the {config.get('model_type')} encoder"
            f" (supported: {', '.join(map(repr, allowed))}); use your own module with `encoder`"
        )


def require_multiple(name: str, number: int, by: str, divisor: int) -> None:
    """Raises EncoderError if a number is not a multiple of another one.

    Args:
      name: The name of the number, for the message.
      number: The number.
      by: The name of the divisor.
      divisor: The divisor.
    """
    if number % divisor:
        raise EncoderError(
            f"{name} {number} is not a multiple of {by} {divisor}; correct config.json"
        )
