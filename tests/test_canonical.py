"""Tests of the canonical form of settings."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from jaxval.canonical import canonical, digest


@dataclass(frozen=True)
class Inner:
    size: int
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outer:
    inner: Inner
    scale: float = 1.0
    extra: dict[str, int] = field(default_factory=dict)


def test_a_record_is_the_fields_that_differ_from_their_defaults():
    assert canonical(Outer(Inner(2))) == {"inner": {"size": 2}}
    assert canonical(Outer(Inner(2, ("a",)), 0.5, {"b": 1})) == {
        "inner": {"size": 2, "names": ["a"]},
        "scale": 0.5,
        "extra": {"b": 1},
    }


def test_a_field_without_a_default_is_always_there():
    assert canonical(Inner(0)) == {"size": 0}


def test_collections_and_paths_are_what_json_holds():
    value = {"set": {"b", "a"}, 1: (Path("x/y"), None, True, 1.5)}
    assert canonical(value) == {"set": ["a", "b"], "1": ["x/y", None, True, 1.5]}


def test_the_order_of_keys_does_not_matter_and_that_of_a_sequence_does():
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert digest([1, 2]) != digest([2, 1])


@pytest.mark.parametrize("value", [object(), len, Outer, {"a": [lambda: None]}])
def test_what_has_no_stable_text_is_refused(value):
    with pytest.raises(TypeError, match="has no canonical form"):
        canonical(value)
