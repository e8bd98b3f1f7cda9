"""Canonical form of settings: what identifies them stays the same when fields are added."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import PurePath
from typing import Any


def canonical(value: Any) -> Any:
    """Returns a value in a form that JSON can hold.

    A dataclass becomes a dictionary of the fields that differ from their default. So a new
    field with a default changes no canonical form that exists. A new default of an existing
    field does: the same form then means another value.

    Args:
      value: A dataclass, mapping, sequence, set, path, string, number, bool or None.

    Raises:
      TypeError: The value has another type. Its text might differ from run to run.
    """
    if is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: canonical(getattr(value, field.name))
            for field in fields(value)
            if getattr(value, field.name) != _default(field)
        }
    if isinstance(value, Mapping):
        return {str(key): canonical(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [canonical(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted(map(canonical, value))
    if isinstance(value, PurePath):
        return str(value)
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    raise TypeError(f"a {type(value).__name__} has no canonical form")


def digest(value: Any) -> str:
    """Returns the first 16 hex digits of the SHA-256 of a value's canonical form."""
    text = json.dumps(canonical(value), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _default(field: Field[Any]) -> Any:
    """Returns the field's default, or MISSING, which equals no value."""
    if field.default_factory is not MISSING:
        return field.default_factory()
    return field.default
