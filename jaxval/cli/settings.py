"""Converts the values of an app's flags to the settings of jaxval.config."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, TypeVar

from jaxval.cli import flags
from jaxval.cli.app import Values
from jaxval.config import Config, Evaluation, Model, Output, Search, Texts, Watching
from jaxval.corpus import datasets
from jaxval.errors import UserError
from jaxval.records import DatasetFiles, ParamsPaths, PinLimit

_Record = TypeVar("_Record")


def config(values: Values) -> Config:
    """Returns the settings of a whole run.

    Raises:
      UserError: A required flag is missing, or two flags cannot be combined.
    """
    directory = output_dir(values)
    return Config(
        watching=watching(values),
        evaluation=evaluation(values, directory / "tokens"),
        output=_record(Output, values, directory=directory),
    )


def watching(values: Values) -> Watching:
    """Returns which checkpoints to validate, and when to end.

    Raises:
      UserError: A required flag is missing, or two flags cannot be combined.
    """
    return _record(
        Watching,
        values,
        pin_dir=_pin_dir(values.pin_dir, output_dir(values)),
        pin_limit=_record(PinLimit, values),
    )


def evaluation(values: Values, token_dir: Path | None = None) -> Evaluation:
    """Returns how each checkpoint is evaluated.

    Args:
      values: The values of the flags.
      token_dir: Directory of tokenized texts if --token_dir is not set.

    Raises:
      UserError: A required flag is missing, or two flags cannot be combined.
    """
    if values.token_dir:
        token_dir = Path(values.token_dir)
    return _record(
        Evaluation,
        values,
        model=_record(Model, values, params_paths=_record(ParamsPaths, values)),
        texts=_record(Texts, values, token_dir=token_dir),
        search=_record(Search, values),
    )


def dataset(values: Values) -> DatasetFiles:
    """Returns the validation set of an app that takes only one.

    Raises:
      UserError: --dataset is missing, repeated, or wrong.
    """
    specs = values.dataset or ()
    if len(specs) > 1:
        raise UserError("--dataset is repeated: name one set")
    (files,) = datasets.parse_all(specs)
    return files


def output_dir(values: Values) -> Path:
    """Returns the absolute path of --output_dir.

    Raises:
      UserError: --output_dir is not set.
    """
    if not values.output_dir:
        raise UserError("--output_dir is not set: name a directory for the results")
    return Path(values.output_dir).expanduser().absolute()


def runs(values: Values) -> list[Path]:
    """Returns the paths of the run files that --run names."""
    return [Path(path).expanduser() for path in values.run]


def steps(values: Values) -> set[int]:
    """Returns the steps that --steps lists.

    Raises:
      UserError: One is not a number.
    """
    for step in values.steps:
        if not step.strip().isdigit():
            raise UserError(f"--steps: {step!r} is not a step: write numbers, as in 0,100,200")
    return set(map(int, values.steps))


def _record(record: type[_Record], values: Values, **fields: Any) -> _Record:
    """Returns a record with its flags' values, except for the given fields."""
    from_flags = {
        flag.field: flag.convert(values[flag.name].value)
        for flag in flags.ALL
        if flag.record is record and flag.field not in fields
    }
    return record(**from_flags, **fields)


def _pin_dir(pin_dir: str | None, output_dir: Path) -> Path:
    """Returns the directory of this run's pins. Several runs can share --pin_dir."""
    if not pin_dir:
        return output_dir / "pins"
    run = hashlib.sha256(str(output_dir).encode()).hexdigest()[:12]
    return Path(pin_dir).expanduser().absolute() / f"jaxval-{run}"
