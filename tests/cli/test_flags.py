"""Every setting has one flag, and the flag has its default."""

import dataclasses

import pytest

from jaxval.cli import flags
from jaxval.config import Evaluation, Model, Output, Search, Texts, Watching
from jaxval.records import ParamsPaths, PinLimit

RECORDS = (Watching, PinLimit, Model, ParamsPaths, Texts, Search, Evaluation, Output)

WITHOUT_FLAG = {
    # Records of their own, whose fields have flags.
    (Watching, "pin_limit"),
    (Model, "params_paths"),
    (Evaluation, "model"),
    (Evaluation, "texts"),
    (Evaluation, "search"),
    # An encoder object, which only Python code can give.
    (Model, "encoder"),
}

FIELDS = [(record, field) for record in RECORDS for field in dataclasses.fields(record)]


@pytest.mark.parametrize(
    ("record", "field"),
    FIELDS,
    ids=[f"{record.__name__}.{field.name}" for record, field in FIELDS],
)
def test_each_field_has_one_flag_with_its_default(record, field):
    setters = [flag for flag in flags.ALL if (flag.record, flag.field) == (record, field.name)]
    assert len(setters) == ((record, field.name) not in WITHOUT_FLAG)
    for flag in setters:
        if field.default is not dataclasses.MISSING:
            assert flag.convert(flag.default) == field.default
        else:
            assert flag.default is None
            assert flag.help.startswith("Required. ") or field.name == "pin_dir"


def test_flags_without_a_field():
    assert {flag.name for flag in flags.ALL if flag.record is None} == {"check", "devices"}


def test_names_are_unique():
    names = [flag.name for flag in flags.ALL]
    assert len(names) == len(set(names)) > 40


@pytest.mark.parametrize("flag", flags.ALL, ids=lambda flag: flag.name)
def test_help_explains_what_none_means(flag):
    assert flag.help[0].isupper()
    assert flag.help.endswith(".")
    assert (
        flag.default is not None
        or flag.help.startswith("Required. ")
        or ("None: " in flag.help or "Replaces" in flag.help or flag.name == "model")
    )
