"""Validates a checkpoint, or parameters in memory, from a notebook or a training script."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from jaxval.checkpoints import restore as restoring
from jaxval.checkpoints.commit import read_commit
from jaxval.checkpoints.lora import Base
from jaxval.checkpoints.restore import Restored
from jaxval.config import Evaluation, Model, Search, Texts
from jaxval.corpus.datasets import parse
from jaxval.encoders import factory, folder
from jaxval.errors import UserError
from jaxval.evaluation.encoding import read_base
from jaxval.evaluation.plan import EvalPlan, SetResult
from jaxval.evaluation.prepare import prepare
from jaxval.evaluation.validate import validate as validate_sets
from jaxval.metrics.significance import compare
from jaxval.records import Bar, Checkpoint, Encoder, Params, ParamsPaths, Progress
from jaxval.results.result import Result

_PATHS = {"params_path": "tree", "query_params_path": "query", "passage_params_path": "passage"}


def validate(
    encoder: Encoder | str | os.PathLike[str],
    params: Params,
    *,
    dataset: str,
    measures: str | Sequence[str] = Search.measures,
    devices: Sequence[jax.Device] | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> Result:
    """Validates one checkpoint on one validation set.

    It computes what `python -m jaxval.main` computes with the same settings. It writes
    nothing, except tokenized texts if `token_dir` is set, takes no lock and handles no signal.

    Args:
      encoder: An encoder (from `from_linen`, `from_nnx` or `FunctionEncoder`), which needs
        the setting `tokenizer`; or a Hugging Face folder.
      params: The parameters: a tree of arrays, the path of a checkpoint (one step's
        directory), or a model folder with weights. They are found by their structure, so a
        whole train state works too.
      dataset: `NAME:FOLDER`, as for the flag `dataset`.
      measures: The measures, as ir_measures names them: one, or a sequence of them.
      devices: The devices to encode on. None takes all local devices.
      progress: Shows the progress of long work. None shows nothing.
      **settings: Settings of the same names as the flags, of the records `Model`, `Texts` and
        `Search` in `jaxval.config`, and `batch_tokens`: for example
        `passage_max_len=128`, `similarity="cosine"`, `tokenizer="/models/bert"`,
        `params_path="ema_params"`.

    Returns:
      The result with its per-query values. Its series is not that of a run whose encoder is
      made by a factory, because an object has no name; with the same settings the values are
      the same.

    Raises:
      UserError: A setting or the data is wrong. The message names the setting.
      CheckpointError: The checkpoint cannot be read.
    """
    evaluation = _evaluation(encoder, dataset, measures, settings)
    with _token_dir(evaluation) as complete:
        prepared = prepare(
            complete, lambda: devices or jax.local_devices(), progress or _no_progress
        )
        checkpoint, restored = _restored(params, prepared.plan)
        series = {prepared.plan.sets[0].series}
        label = f"step {checkpoint.step}" if checkpoint else "parameters"
        (result,) = validate_sets(
            label, restored, prepared.plan, series, progress or _no_progress
        )
    return _result(result, checkpoint)


def load_params(
    path: str | os.PathLike[str],
    encoder: Encoder | str | os.PathLike[str],
    *,
    params_path: str | None = None,
    query_params_path: str | None = None,
    passage_params_path: str | None = None,
) -> Params:
    """Reads only an encoder's parameters from a checkpoint.

    They are found by their structure, for any layout, topology and optimizer.

    Args:
      path: A checkpoint (one step's directory), or a model folder with weights.
      encoder: An encoder, or a Hugging Face folder that describes one.
      params_path: The subtree to take if several fit.
      query_params_path: The subtree of the query tower, with `passage_params_path`.
      passage_params_path: The subtree of the passage tower.

    Returns:
      The tree that the encoder expects, of NumPy arrays; if the towers are untied,
      `{"query": tree, "passage": tree}`.

    Raises:
      MismatchError: The checkpoint does not hold the encoder's parameters.
      CheckpointError: The checkpoint cannot be read.
    """
    paths = ParamsPaths(params_path, query_params_path, passage_params_path)
    if isinstance(encoder, (str, os.PathLike)):
        encoder = folder.build(folder.read(os.fspath(encoder)))
    factory.require_encoder(encoder, "`encoder` is")
    return _read(os.fspath(path), encoder.abstract_params(), paths, None)[1].params


def _evaluation(
    encoder: Encoder | str | os.PathLike[str],
    dataset: str,
    measures: str | Sequence[str],
    settings: Mapping[str, Any],
) -> Evaluation:
    texts, search, model, rest = (
        {name: value for name, value in settings.items() if name in names}
        for names in (_fields(Texts), _fields(Search), _model_settings(), {"batch_tokens"})
    )
    _check_known(settings)
    return Evaluation(
        datasets=(parse(dataset),),
        model=_model(encoder, model),
        texts=Texts(**_as_paths(texts, "token_dir")),
        search=Search(**_as_paths(search, "rerank"), measures=_measures(measures)),
        **rest,
    )


def _model(encoder: Encoder | str | os.PathLike[str], settings: Mapping[str, Any]) -> Model:
    paths = {_PATHS[name]: value for name, value in settings.items() if name in _PATHS}
    rest = {name: value for name, value in settings.items() if name not in _PATHS}
    if isinstance(encoder, (str, os.PathLike)):
        rest = {"tokenizer": None} | rest
        return Model(folder=os.fspath(encoder), params_paths=ParamsPaths(**paths), **rest)
    return Model(encoder=encoder, params_paths=ParamsPaths(**paths), **rest)


def _fields(record: type) -> set[str]:
    return {field.name for field in dataclasses.fields(record)} - {"measures"}


def _model_settings() -> set[str]:
    not_settings = {"folder", "factory", "encoder", "params_paths"}
    return (_fields(Model) - not_settings) | set(_PATHS)


def _check_known(settings: Mapping[str, Any]) -> None:
    known = _fields(Texts) | _fields(Search) | _model_settings() | {"batch_tokens"}
    for name in settings:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            names = ", ".join(sorted(known))
            remedy = f"did you mean {near[0]}?" if near else f"choose from {names}"
            raise UserError(f"`{name}` is not a setting of validate: {remedy}")


def _measures(measures: str | Sequence[str]) -> tuple[str, ...]:
    return (measures,) if isinstance(measures, str) else tuple(measures)


def _as_paths(settings: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = settings.get(name)
    return dict(settings) | ({name: Path(value).expanduser()} if value else {})


@contextlib.contextmanager
def _token_dir(evaluation: Evaluation) -> Iterator[Evaluation]:
    """Gives tokenized texts a temporary directory where none is set."""
    if evaluation.texts.token_dir is not None:
        yield evaluation
        return
    with tempfile.TemporaryDirectory(prefix="jaxval-tokens-") as folder:
        texts = dataclasses.replace(evaluation.texts, token_dir=Path(folder))
        yield dataclasses.replace(evaluation, texts=texts)


def _restored(params: Params, plan: EvalPlan) -> tuple[Checkpoint | None, Restored]:
    if isinstance(params, (str, os.PathLike)):
        return _read(os.fspath(params), plan.abstract_params, plan.params_paths, plan.base)
    return None, restoring.fitted(params, plan.abstract_params)


def _read(
    path: str, abstract_params: Params, paths: ParamsPaths, base: Base | None
) -> tuple[Checkpoint | None, Restored]:
    checkpoint = read_commit(restoring.absolute(path))
    if checkpoint is None:
        return None, read_base(path, abstract_params)
    return checkpoint, restoring.restore(checkpoint, abstract_params, paths, base)


def _result(result: SetResult, checkpoint: Checkpoint | None) -> Result:
    return Result(
        dataset=result.eval_set.name,
        measures=result.measures,
        intervals=compare(result.per_query, None).intervals,
        step=checkpoint.step if checkpoint else None,
        checkpoint=str(checkpoint.path) if checkpoint else "",
        commit_ns=checkpoint.commit_ns if checkpoint else 0,
        params_at=result.params_at,
        passages=result.corpus.count,
        queries=len(result.eval_set.query_ids),
        seconds=result.seconds,
        series=result.eval_set.series,
        query_ids=result.eval_set.query_ids,
        per_query=result.per_query,
    )


class _Silent:
    """A Bar that shows nothing."""

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, n: int) -> None:
        pass


def _no_progress(label: str, total: int | None) -> Bar:
    return _Silent()
