"""Adapters that make an Encoder of a Flax module or of bare functions.

def factory():
    return from_linen(MyRetriever(), query_method="queries", passage_method="passages")
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from jaxval.errors import EncoderError
from jaxval.records import Encoder, Params

Encode = Callable[[Params, jax.Array, jax.Array], jax.Array]
"""(params, ids [batch, length] int32, mask [batch, length] bool) -> [batch, dim]."""


@dataclass(frozen=True, eq=False)
class FunctionEncoder:
    """An Encoder made of pure functions.

    It is only equal to itself, and so can be the key of a cache.

    Attributes:
      queries: Encodes queries.
      passages: Encodes passages; the same function if the towers are tied.
      shapes: Returns the parameter tree that both functions expect, each leaf a
        jax.ShapeDtypeStruct. Floating leaves are cast to `dtype` when they are restored.
    """

    queries: Encode
    passages: Encode
    shapes: Callable[[], Params]

    def encode_queries(self, params: Params, ids: jax.Array, mask: jax.Array) -> jax.Array:
        """Returns the vectors of queries, [batch, dim]."""
        return self.queries(params, ids, mask)

    def encode_passages(self, params: Params, ids: jax.Array, mask: jax.Array) -> jax.Array:
        """Returns the vectors of passages, [batch, dim]."""
        return self.passages(params, ids, mask)

    def abstract_params(self) -> Params:
        """Returns the tree that the functions expect, each leaf a jax.ShapeDtypeStruct."""
        return self.shapes()


def from_linen(
    module: Any,
    *,
    query_method: str | Callable[..., jax.Array] | None = None,
    passage_method: str | Callable[..., jax.Array] | None = None,
) -> Encoder:
    """Returns an Encoder of a linen module whose methods map (ids, mask) to [batch, dim].

    If queries and passages have different methods, the parameter tree is the union of the
    parameters that each of them uses.

    Args:
      module: An unbound flax.linen.Module, configured to run without dropout.
      query_method: The method that encodes queries, by name or as a function of the module,
        ids and mask; None for `__call__`.
      passage_method: The method that encodes passages, likewise.

    Raises:
      EncoderError: `module` is a class.
    """
    if isinstance(module, type):
        name = module.__name__
        raise EncoderError(
            f"from_linen was given the class {name}: pass an instance: from_linen({name}())"
        )

    def encode_by(method: str | Callable[..., jax.Array] | None) -> Encode:
        return lambda params, ids, mask: module.apply(
            {"params": params}, ids, mask, method=method
        )

    methods = list(dict.fromkeys((query_method, passage_method)))
    return FunctionEncoder(
        queries=encode_by(query_method),
        passages=encode_by(passage_method),
        shapes=lambda: _union([_linen_shapes(module, method) for method in methods]),
    )


def from_nnx(
    module: Any,
    *,
    query_method: str | Callable[..., jax.Array] | None = None,
    passage_method: str | Callable[..., jax.Array] | None = None,
) -> Encoder:
    """Returns an Encoder of an NNX module whose methods map (ids, mask) to [batch, dim].

    Its parameter tree is the module's nnx.Param variables as a pure dictionary. Texts are
    encoded by a copy in evaluation mode (`eval()`), so Dropout is off. The module that is
    passed does not change, and its parameters are not kept in memory. RNG streams of the
    module are not parameters. A module that draws random numbers while it encodes fails.

    Args:
      module: A function without arguments that returns an nnx.Module, of which only the
        shapes are computed; or an nnx.Module, as is needed where it keeps constant arrays.
      query_method: The method that encodes queries, by name or as a function of the module,
        ids and mask; None for `__call__`.
      passage_method: The method that encodes passages, likewise.

    Raises:
      EncoderError: `module` is neither, or it contains variables other than nnx.Param and
        RNG streams, such as the statistics of BatchNorm.
    """
    from flax import nnx  # it takes 0.1 s, which users of linen need not spend

    graph, params, rest = nnx.split(_nnx_model(module), nnx.Param, ...)
    shapes = jax.tree.map(_bare, nnx.to_pure_dict(params))

    def encode_by(method: str | Callable[..., jax.Array] | None) -> Encode:
        def encode(params: Params, ids: jax.Array, mask: jax.Array) -> jax.Array:
            model = nnx.merge(graph, params, rest)
            if callable(method):
                return method(model, ids, mask)
            return getattr(model, method or "__call__")(ids, mask)  # type: ignore[no-any-return]

        return encode

    return FunctionEncoder(encode_by(query_method), encode_by(passage_method), lambda: shapes)


def _nnx_model(module: Any) -> Any:
    """Returns a copy of a module in evaluation mode, or what a function that makes one returns.

    Raises:
      EncoderError: `module` is a class, or makes no supported nnx.Module.
    """
    from flax import nnx

    if isinstance(module, type):
        name = module.__name__
        raise EncoderError(
            f"from_nnx was given the class {name}: pass a function that calls it:"
            f" from_nnx(lambda: {name}(rngs=nnx.Rngs(0)))"
        )
    if isinstance(module, nnx.Module):
        model = _nnx_checked(nnx.clone(module), (nnx.Variable,))
    else:
        # An array that is no variable has no value where only shapes are computed.
        unsupported = (nnx.Variable, jax.Array, np.ndarray)
        with _nnx_unsharded():
            model = nnx.eval_shape(lambda: _nnx_checked(module(), unsupported))
    model.eval()
    return model


def _nnx_unsharded() -> AbstractContextManager[Any]:
    """Returns a context in which the trainer's sharding annotations have no effect."""
    from flax import nnx

    # Flax before 0.12 does not shard a variable when it is created.
    return (
        nnx.use_eager_sharding(False) if hasattr(nnx, "use_eager_sharding") else nullcontext()
    )


def _nnx_checked(model: Any, unsupported: tuple[type, ...]) -> Any:
    """Returns the model if it has nothing `unsupported` except for Params and RNG streams.

    Raises:
      EncoderError: It has something unsupported, or it is no nnx.Module.
    """
    from flax import nnx

    name = type(model).__name__
    if not isinstance(model, nnx.Module):
        raise EncoderError(
            f"from_nnx was given a function that returns a {name}: return an nnx.Module"
        )
    supported = (nnx.Param, nnx.RngState)
    for path, leaf in nnx.iter_graph(model):
        if isinstance(leaf, unsupported) and not isinstance(leaf, supported):
            kind, remedy = type(leaf).__name__, "wrap it in `jaxval.FunctionEncoder`"
            if not isinstance(leaf, nnx.Variable):
                kind, remedy = "an array", "pass the module itself instead of a function"
            raise EncoderError(
                f"{name} has {kind} at {'/'.join(map(str, path))}, and from_nnx restores only"
                f" nnx.Param: {remedy}"
            )
    return model


def _linen_shapes(module: Any, method: str | Callable[..., jax.Array] | None) -> Params:
    # Real arrays would open a device, before the settings are checked.
    ids = jax.ShapeDtypeStruct((1, 8), jnp.int32)
    mask = jax.ShapeDtypeStruct((1, 8), jnp.bool_)

    def init(ids: jax.Array, mask: jax.Array) -> Params:
        params = module.init(jax.random.key(0), ids, mask, method=method).get("params", {})
        # Boxes (nn.Partitioned) hold the trainer's sharding, which does not apply here.
        return flax.core.unfreeze(flax.core.meta.unbox(params))

    return jax.tree.map(_bare, jax.eval_shape(init, ids, mask))


def _bare(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)


def _union(trees: list[Params]) -> Params:
    leaves = {path: leaf for t in trees for path, leaf in traverse_util.flatten_dict(t).items()}
    return traverse_util.unflatten_dict(leaves)
