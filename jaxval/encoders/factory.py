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

_FOREIGN = (
    "<",
    str(Path(__file__).parents[1]),
    *{sysconfig.get_path(kind) for kind in ("stdlib", "purelib", "platlib")},
)
"""The beginnings of the paths of Python's, libraries' and jaxval's own source files."""
_SHOWN = 5  # calls of the user's code in a note
_WRAP = "wrap the module in `jaxval.FunctionEncoder`"

_COLLECTION_ERRORS = (
    "ScopeCollectionNotFound",
    "ScopeVariableNotFoundError",
    "ModifyScopeVariableError",
)
"""The errors that flax raises if a collection is not passed, or is not mutable."""


def load_factory(spec: str) -> Encoder:
    """Imports the user's factory and returns the Encoder that it makes.

    Modules can be imported from the working directory, as with `python -m`.

    Args:
      spec: The factory, a function without arguments, as `package.module:factory`.

    Raises:
      EncoderError: The module cannot be imported, the factory does not exist or fails, or
        does not return an Encoder. An exception of the user's code is the cause of the error.
    """
    name, _, attribute = spec.partition(":")
    if not name or not attribute:
        raise EncoderError(
            f"`encoder={spec}` is not of the form package.module:factory: name the module and"
            " the function that returns the encoder, with a colon between them"
        )
    factory = _attribute(spec, _import(spec, name), attribute)
    try:
        encoder = factory()
    except EncoderError as error:  # from one of the adapters, with a complete text
        raise EncoderError(f"`encoder={spec}`: {error}") from error
    except Exception as error:
        raise _with_note(
            f"`encoder={spec}`: {attribute}() raised {_brief(error)}; "
            "it is called without arguments and must return an encoder",
            error,
        ) from error
    require_encoder(encoder, f"`encoder={spec}` returned")
    return encoder  # type: ignore[no-any-return]


def require_encoder(encoder: Any, what: str) -> None:
    """Raises EncoderError unless an object has the methods of an Encoder.

    Args:
      encoder: The object.
      what: How the message begins, e.g. "`encoder` is".
    """
    missing = [name for name in _METHODS if not callable(getattr(encoder, name, None))]
    if missing:
        call = "call the function, or " if inspect.isfunction(encoder) else ""
        raise EncoderError(
            f"{what} a {type(encoder).__name__} without {', '.join(missing)}; {call}wrap a"
            " linen module in `jaxval.from_linen`, an NNX module in `jaxval.from_nnx`, or"
            " functions in `jaxval.FunctionEncoder`"
        )


def check(encoder: Encoder, name: str) -> None:
    """Traces both functions of an encoder, and computes nothing.

    Args:
      encoder: The encoder to check.
      name: What messages call it, e.g. the setting and its value.

    Raises:
      EncoderError: A function raises an error, or does not return [batch, dim], or their
        numbers of components differ.
    """
    require_encoder(encoder, f"{name} is")
    try:
        params = encoder.abstract_params()
    except Exception as error:
        message = f"{name}: computing the shapes of its parameters raised {_advised(error)}"
        raise _with_note(message, error) from error
    queries = _traced(encoder.encode_queries, params, f"{name}: encoding queries")
    passages = _traced(encoder.encode_passages, params, f"{name}: encoding passages")
    if queries != passages:
        raise EncoderError(
            f"{name}: vectors of queries have {queries} components and those of passages"
            f" {passages}; return the same number for both"
        )


def _traced(encode: Encode, params: Params, what: str) -> int:
    """Returns the number of components of the vectors that a function returns."""
    ids = jax.ShapeDtypeStruct((2, 8), jnp.int32)
    mask = jax.ShapeDtypeStruct((2, 8), jnp.bool_)
    try:
        result = jax.eval_shape(encode, params, ids, mask)
    except Exception as error:
        raise _with_note(f"{what} raised {_advised(error)}", error) from error
    shape = getattr(result, "shape", None)
    if shape is None:
        raise EncoderError(
            f"{what} returned a {type(result).__name__}; return one array [batch, dim]"
        )
    if len(shape) != 2 or shape[0] != 2:
        raise EncoderError(
            f"{what} returned {list(shape)} for ids of [2, 8], expected [batch, dim]; pool the"
            " token states"
        )
    return int(shape[1])


def _with_note(message: str, error: Exception) -> EncoderError:
    """Returns an error whose note shows the last calls of the user's code before `error`."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith(_FOREIGN)]
    lines = [f'  File "{f.filename}", line {f.lineno}, in {f.name}\n    {f.line}' for f in own]
    if isinstance(error, SyntaxError):  # its own text shows the line
        lines = ["".join(traceback.format_exception_only(error)).rstrip()]
    encoder_error = EncoderError(message)
    if lines:
        encoder_error.add_note("\n".join(lines[-_SHOWN:]))
    return encoder_error


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
            " start jaxval in the directory that contains it"
        )
    here = os.getcwd()  # noqa: PTH109  sys.path holds strings
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except Exception as error:
        install = (
            f"; install it, or start jaxval in the directory that contains it (now {here})"
        )
        remedy = install if isinstance(error, ImportError) else "; correct the module"
        message = f"`encoder={spec}`: importing {name} raised {_brief(error)}{remedy}"
        raise _with_note(message, error) from error


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
