"""How any Flax module becomes an Encoder, and how a flag names one.

def factory():
    return from_linen(MyRetriever(), query_method="queries", passage_method="passages")
"""

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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flax
import jax
import jax.numpy as jnp
from flax import traverse_util

from jaxval.errors import EncoderError
from jaxval.records import Encoder, Params

Encode = Callable[[Params, jax.Array, jax.Array], jax.Array]
"""(params, ids [batch, length] int32, mask [batch, length] bool) -> [batch, dim]."""

_METHODS = ("encode_queries", "encode_passages", "abstract_params")

_NOT_THE_USERS = (
    "<",
    str(Path(__file__).parents[1]),
    *{sysconfig.get_path(kind) for kind in ("stdlib", "purelib", "platlib")},
)
"""How the paths of frames begin that are Python's, a library's or jaxval's."""
_SHOWN = 5

_COLLECTION_ERRORS = (
    "ScopeCollectionNotFound",
    "ScopeVariableNotFoundError",
    "ModifyScopeVariableError",
)
"""What flax raises where a collection is not passed, or passed to be read alone."""


@dataclass(frozen=True, eq=False)
class FunctionEncoder:
    """An Encoder made of bare functions. Equal to itself alone, so it can be a cache's key.

    Attributes:
      queries: encodes queries; pure.
      passages: encodes passages; pure. The same function where the towers are tied.
      shapes: gives the tree that both expect, each leaf a jax.ShapeDtypeStruct. Floating
        leaves are held in what `dtype` says.
    """

    queries: Encode
    passages: Encode
    shapes: Callable[[], Params]

    def encode_queries(self, params: Params, ids: jax.Array, mask: jax.Array) -> jax.Array:
        """Vectors of queries, [batch, dim]."""
        return self.queries(params, ids, mask)

    def encode_passages(self, params: Params, ids: jax.Array, mask: jax.Array) -> jax.Array:
        """Vectors of passages, [batch, dim]."""
        return self.passages(params, ids, mask)

    def abstract_params(self) -> Params:
        """The tree that the functions expect, each leaf a jax.ShapeDtypeStruct."""
        return self.shapes()


def from_linen(
    module: Any,
    *,
    query_method: str | Callable[..., jax.Array] | None = None,
    passage_method: str | Callable[..., jax.Array] | None = None,
) -> Encoder:
    """An Encoder from a linen module whose methods take (ids, mask) and give [batch, dim].

    Args:
      module: an unbound flax.linen.Module, set to run without dropout.
      query_method: the method that encodes queries; None is `__call__`.
      passage_method: the same for passages. With one method for both the towers are
        tied; with two, the tree is the union of what each of them touches.

    Raises:
      EncoderError: it is a class, no module.
    """
    if isinstance(module, type):
        name = module.__name__
        raise EncoderError(
            f"from_linen was given the class {name}: call it: from_linen({name}())"
        )

    def through(method: str | Callable[..., jax.Array] | None) -> Encode:
        return lambda params, ids, mask: module.apply(
            {"params": params}, ids, mask, method=method
        )

    methods = list(dict.fromkeys((query_method, passage_method)))
    return FunctionEncoder(
        queries=through(query_method),
        passages=through(passage_method),
        shapes=lambda: _union([_linen_shapes(module, method) for method in methods]),
    )


def _linen_shapes(module: Any, method: str | Callable[..., jax.Array] | None) -> Params:
    ids, mask = jnp.zeros((1, 8), jnp.int32), jnp.ones((1, 8), bool)

    def init() -> Params:
        params = module.init(jax.random.key(0), ids, mask, method=method).get("params", {})
        # Boxes (nn.Partitioned) hold the trainer's sharding, which is not ours.
        return flax.core.unfreeze(flax.core.meta.unbox(params))

    return jax.tree.map(_bare, jax.eval_shape(init))


def _bare(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)


def _union(trees: list[Params]) -> Params:
    leaves = {path: leaf for t in trees for path, leaf in traverse_util.flatten_dict(t).items()}
    return traverse_util.unflatten_dict(leaves)


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
    """Of the source of the factory's module, which decides what it makes; 16 hex digits.

    What that module imports is not followed.
    """
    module = importlib.import_module(spec.partition(":")[0])
    try:
        source = inspect.getsource(module)
    except (OSError, TypeError):  # it has none: compiled, or made in memory
        source = ""
    return hashlib.sha256(source.encode()).hexdigest()[:16]


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
            f"{', '.join(lacking)}; wrap a linen module in "
            "jaxval.encoders.adapter.from_linen, or functions in FunctionEncoder"
        )
    return encoder  # type: ignore[no-any-return]


def _advised(error: Exception) -> str:
    """What an error of the user's module says, and the remedy where from_linen's limits are
    the cause.
    """
    brief, remedy = _brief(error), ""
    if isinstance(error, TypeError) and "required positional argument" in brief:
        remedy = (
            "; from_linen passes ids and mask alone: set the others (train, deterministic) when"
            " the module is made, or wrap it in FunctionEncoder"
        )
    elif type(error).__name__ in _COLLECTION_ERRORS:
        remedy = (
            "; from_linen passes the collection `params` alone: modules that keep others (the"
            " batch_stats of BatchNorm) are not supported"
        )
    return brief + remedy


def _brief(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
