"""Attention over padded texts: by XLA everywhere, by cuDNN on the GPUs where it runs."""

from __future__ import annotations

import logging
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

_LOG = logging.getLogger(__name__)


class Attend(Protocol):
    """How attention is computed."""

    def __call__(
        self,
        query: jax.Array,
        key: jax.Array,
        value: jax.Array,
        mask: jax.Array,
        *,
        bias: jax.Array | None = None,
        causal: bool = False,
        scale: float | None = None,
    ) -> jax.Array:
        """The attended values, [batch, length, heads, width], of the query's dtype.

        Args:
          query: [batch, length, heads, width].
          key, value: [batch, length, key heads, width]. Each serves as many heads of the
            query, side by side (grouped-query attention), as their numbers say.
          mask: [batch, length] bool, False on padding.
          bias: [heads, length, length], by query and key, added to the scaled scores.
          causal: whether a position sees itself and those before it alone.
          scale: of the scores; None for 1 / sqrt(width).
        """
        ...


_NOTHING = -1e30  # finite, so that a text that is all padding has a finite vector
_WIDEST = 128  # the widest head that cuDNN takes on all GPUs


def plain(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: jax.Array,
    *,
    bias: jax.Array | None = None,
    causal: bool = False,
    scale: float | None = None,
) -> jax.Array:
    """Attention with its softmax in float32.

    The mask is broadcast, never [length, length]. Heads stand before positions, and the
    sum is divided out of the result instead of the weights: on CPU twice as fast as
    jax.nn.dot_product_attention (benchmarks/NOTES.md). Heads of the query that share a key
    stand under each other as its rows, so that no key is repeated.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    query, key, value = (each.transpose(0, 2, 1, 3) for each in (query, key, value))
    rows = query.reshape(*key.shape[:2], -1, key.shape[3])
    scores = scale * jnp.einsum("bhqw,bhkw->bhqk", rows, key, preferred_element_type="f4")
    if bias is not None:
        scores = scores + bias.reshape(1, *scores.shape[1:])
    seen = mask[:, None, None, :]
    if causal:
        seen = seen & _past(query.shape[2], query.shape[1] // key.shape[1])
    scores = jnp.where(seen, scores, _NOTHING)
    weights = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
    total = weights.sum(axis=-1, keepdims=True)
    weights = weights.astype(value.dtype)
    summed = jnp.einsum("bhqk,bhkw->bhqw", weights, value, preferred_element_type="f4")
    return (summed / total).astype(query.dtype).reshape(query.shape).transpose(0, 2, 1, 3)


def _past(length: int, repeats: int) -> jax.Array:
    """Which positions a position sees if it sees no later ones; [1, 1, rows, length]."""
    return jnp.tile(jnp.tril(jnp.ones((length, length), bool)), (repeats, 1))[None, None]


def cudnn(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: jax.Array,
    *,
    bias: jax.Array | None = None,
    causal: bool = False,
    scale: float | None = None,
) -> jax.Array:
    """The same by cuDNN's flash attention, where it takes such heads; else `plain`.

    It is told lengths instead of a mask: padding must stand on the right.
    """
    half = query.dtype in (jnp.bfloat16, jnp.float16)
    fits = query.shape[-1] % 8 == 0 and query.shape[-1] <= _WIDEST
    if not half or not fits or bias is not None:
        return plain(query, key, value, mask, bias=bias, causal=causal, scale=scale)
    lengths = jnp.maximum(mask.sum(axis=1, dtype=jnp.int32), 1)
    return jax.nn.dot_product_attention(
        query,
        key,
        value,
        scale=scale,
        is_causal=causal,
        key_value_seq_lengths=lengths,
        implementation="cudnn",
    )


def fastest(device: jax.Device) -> Attend:
    """`cudnn` where it was seen to give what `plain` gives on this device, else `plain`.

    Causal attention is tried by itself: if that alone fails, the others keep cuDNN's.
    """
    if device.platform != "gpu" or not _runs(device, causal=False):
        return plain
    return cudnn if _runs(device, causal=True) else cudnn_unless_causal


def cudnn_unless_causal(
    query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array, **how: Any
) -> jax.Array:
    """`plain` for decoders, `cudnn` for all others."""
    attend = plain if how.get("causal") else cudnn
    return attend(query, key, value, mask, **how)


def _runs(device: jax.Device, *, causal: bool) -> bool:
    try:
        _try_out(cudnn, device, causal)
    except Exception as error:  # by JAX, XLA or cuDNN, each with a type of its own
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        kind = "causal attention" if causal else "attention"
        _LOG.warning("%s is XLA's, for cuDNN's does not run here: %s", kind, first[:200])
        return False
    return True


def _try_out(attend: Attend, device: jax.Device, causal: bool) -> None:
    """Raises unless it gives what `plain` gives; if causal, with two heads to a key."""
    numbers = np.random.default_rng(0).standard_normal((3, 2, 64, 4, 64), np.float32)
    query, key, value = jax.device_put(numbers.astype(jnp.bfloat16), device)
    if causal:
        key, value = key[:, :, :2], value[:, :, :2]
    mask = jax.device_put(np.arange(64) < np.array([[64], [5]]), device)
    found, expected = (
        np.asarray(jax.jit(partial(one, causal=causal))(query, key, value, mask), np.float32)
        for one in (attend, plain)
    )
    off = float(np.abs(found - expected).max())
    if not off < 0.05:  # bfloat16 rounds these to .01; and NaN is not below it
        raise ValueError(f"its results are off by {off}")
