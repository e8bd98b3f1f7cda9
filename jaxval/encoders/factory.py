"""The user's own encoder: imports it by name, checks it, and digests its source."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import inspect
import os
import sys
import sysconfig
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxval.encoders.adapter import Encode
from jaxval.encoders.source import without_comments
from jaxval.errors import EncoderError
from jaxval.records import Encoder, Params

_METHODS = ("encode_queries", "encode_passages", "abstract_params")

_NOT_THE_USERS = (
    "<",
    str(Path(__file__).parents[1]),
    *{sysconfig.get_path(kind) for kind in ("stdlib", "purelib", "platlib")},
)
"""How the paths of frames begin that are Python's, a library's or jaxval's."""
_SHOWN = 5
_WRAP = "wrap the module in `jaxval.FunctionEncoder`"

_COLLECTION_ERRORS = (
    "ScopeCollectionNotFound",
    "ScopeVariableNotFoundError",
    "ModifyScopeVariableError",
)
"""What flax raises where a collection is not passed, or passed to be read alone."""


def load_factory(spec: str) -> Encoder:
    """The Encoder that `package.module:factory` makes, called without arguments.

    The working directory can be imported from, as with `python -m`.

    Raises:
      EncoderError: in one line, what is wrong with the name, the module, the factory or
        what it returned. The user's own exception, if there was one, is its cause.
    """
    name, _, attribute = spec.partition(":")
    if not name or not attribute:
        raise EncoderError(
            f"`encoder={spec}` is not of the form package.module:factory: "
            "name the module, a colon and the function that returns the encoder"
        )
    factory = _attribute(spec, _import(spec, name), attribute)
    try:
        encoder = factory()
    except EncoderError as error:  # from_linen's, which says all
        raise EncoderError(f"`encoder={spec}`: {error}") from error
    except Exception as error:
        raise _blamed(
            f"`encoder={spec}`: {attribute}() raised {_brief(error)}; "
            "it is called without arguments and must return an encoder",
            error,
        ) from error
    return _checked(spec, encoder)


def check(encoder: Encoder, name: str) -> None:
    """Traces both functions without computing anything.

    Args:
      encoder: to be checked.
      name: of the flag and its value, for the message.

    Raises:
      EncoderError: a function raises, or its result is not [batch, dim] with one dim.
    """
    try:
        params = encoder.abstract_params()
    except Exception as error:
        message = f"{name}: its parameters' shapes raised {_advised(error)}"
        raise _blamed(message, error) from error
    queries = _traced(encoder.encode_queries, params, f"{name}: encoding queries")
    passages = _traced(encoder.encode_passages, params, f"{name}: encoding passages")
    if queries != passages:
        raise EncoderError(
            f"{name}: queries get {queries} components and passages {passages}: they cannot be"
            " compared"
        )


def _traced(encode: Encode, params: Params, what: str) -> int:
    """The number of components of its vectors."""
    ids, mask = jnp.zeros((2, 8), jnp.int32), jnp.ones((2, 8), bool)
    try:
        result = jax.eval_shape(encode, params, ids, mask)
    except Exception as error:
        raise _blamed(f"{what} raised {_advised(error)}", error) from error
    shape = getattr(result, "shape", None)
    if shape is None:
        raise EncoderError(f"{what} gives a {type(result).__name__}, wanted one array")
    if len(shape) != 2 or shape[0] != 2:
        raise EncoderError(
            f"{what} gives {list(shape)} for ids of [2, 8], wanted [batch, dim]: is it pooled?"
        )
    return int(shape[1])


def _blamed(message: str, error: Exception) -> EncoderError:
    """An error whose note is the user's own part of the traceback, the last calls of it."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith(_NOT_THE_USERS)]
    lines = [f'  File "{f.filename}", line {f.lineno}, in {f.name}\n    {f.line}' for f in own]
    if isinstance(error, SyntaxError):  # says itself where it stands
        lines = ["".join(traceback.format_exception_only(error)).rstrip()]
    blamed = EncoderError(message)
    if lines:
        blamed.add_note("\n".join(lines[-_SHOWN:]))
    return blamed


def source_digest(spec: str) -> str:
    """Returns a digest of the factory's module, of 16 hex digits.

    Comments, docstrings and blank lines do not change it; nor do the modules that this one
    imports.
    """
    module = importlib.import_module(spec.partition(":")[0])
    try:
        source = inspect.getsource(module)
    except (OSError, TypeError):  # compiled, or made in memory
        source = ""
    return hashlib.sha256(without_comments(source).encode()).hexdigest()[:16]


def _import(spec: str, name: str) -> Any:
    if name.endswith(".py") or "/" in name:
        module = Path(name).stem
        raise EncoderError(
            f"`encoder={spec}` names a file: name the module, as in {module}:factory, and"
            " start in the directory that holds it"
        )
    here = os.getcwd()  # noqa: PTH109  sys.path holds strings
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except Exception as error:
        missing = f"; install it, or start in the directory that holds it (now {here})"
        remedy = missing if isinstance(error, ImportError) else ""
        message = f"`encoder={spec}`: importing {name} raised {_brief(error)}{remedy}"
        raise _blamed(message, error) from error


def _attribute(spec: str, module: Any, attribute: str) -> Callable[[], Any]:
    names = [name for name in vars(module) if not name.startswith("_")]
    if not hasattr(module, attribute):
        near = difflib.get_close_matches(attribute, names) or sorted(names)[:5]
        raise EncoderError(
            f"`encoder={spec}`: {module.__name__} has no {attribute!r}; "
            f"nearest: {', '.join(near) or 'nothing, it is empty'}"
        )
    factory = getattr(module, attribute)
    if not callable(factory):
        raise EncoderError(
            f"`encoder={spec}`: {attribute} is a {type(factory).__name__}, not a function; "
            "name a function that returns the encoder"
        )
    return factory  # type: ignore[no-any-return]


def _checked(spec: str, encoder: Any) -> Encoder:
    lacking = [name for name in _METHODS if not callable(getattr(encoder, name, None))]
    if lacking:
        raise EncoderError(
            f"`encoder={spec}` returned a {type(encoder).__name__} without "
            f"{', '.join(lacking)}; wrap a linen module in `jaxval.from_linen`, an NNX module"
            " in `jaxval.from_nnx`, or functions in `jaxval.FunctionEncoder`"
        )
    return encoder  # type: ignore[no-any-return]


def _advised(error: Exception) -> str:
    """Returns an error's text, and the remedy where a limit of the adapters caused it."""
    brief, remedy = _brief(error), ""
    if isinstance(error, TypeError) and "required positional argument" in brief:
        remedy = (
            "; jaxval passes only ids and mask: set other arguments (train, deterministic) when"
            f" you create the module, or {_WRAP}"
        )
    elif type(error).__name__ in _COLLECTION_ERRORS:
        remedy = (
            "; from_linen passes only the collection `params`, and does not support modules"
            " with other collections (the batch_stats of BatchNorm)"
        )
    elif type(error).__name__ == "TraceContextError":
        remedy = (
            "; an encoder must not change variables or draw random numbers: make them depend on"
            " `deterministic`, which from_nnx sets"
        )
    return brief + remedy


def _brief(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
