"""Attention over padded texts: by XLA everywhere, by cuDNN on the GPUs where it runs."""

from __future__ import annotations

import logging
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

_LOG = logging.getLogger(__name__)

Attend = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]
"""(query, key, value [batch, length, heads, width], mask [batch, length] bool) -> the
attended values, [batch, length, heads, width], of the query's dtype."""

_NOTHING = -1e30  # finite, so that a text that is all padding has a finite vector
_WIDEST = 128  # the widest head that cuDNN takes on all GPUs


def plain(query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array) -> jax.Array:
    """Attention over all unmasked positions, with its softmax in float32.

    The mask is broadcast, never [length, length]. Heads stand before positions, and the
    sum is divided out of the result instead of the weights: on CPU twice as fast as
    jax.nn.dot_product_attention (benchmarks/NOTES.md).
    """
    scale = query.shape[-1] ** -0.5
    query, key, value = (each.transpose(0, 2, 1, 3) for each in (query, key, value))
    scores = scale * jnp.einsum("bhqw,bhkw->bhqk", query, key, preferred_element_type="f4")
    scores = jnp.where(mask[:, None, None, :], scores, _NOTHING)
    weights = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
    total = weights.sum(axis=-1, keepdims=True)
    weights = weights.astype(value.dtype)
    summed = jnp.einsum("bhqk,bhkw->bhqw", weights, value, preferred_element_type="f4")
    return (summed / total).astype(query.dtype).transpose(0, 2, 1, 3)


def cudnn(query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array) -> jax.Array:
    """The same by cuDNN's flash attention, where it takes such heads; else `plain`.

    It is told lengths instead of a mask: padding must stand on the right.
    """
    half = query.dtype in (jnp.bfloat16, jnp.float16)
    if not half or query.shape[-1] % 8 or query.shape[-1] > _WIDEST:
        return plain(query, key, value, mask)
    lengths = jnp.maximum(mask.sum(axis=1, dtype=jnp.int32), 1)
    return jax.nn.dot_product_attention(
        query, key, value, key_value_seq_lengths=lengths, implementation="cudnn"
    )


def fastest(device: jax.Device) -> Attend:
    """`cudnn` where it was seen to give what `plain` gives on this device, else `plain`."""
    if device.platform != "gpu":
        return plain
    try:
        _try_out(cudnn, device)
    except Exception as error:  # by JAX, XLA or cuDNN, each with a type of its own
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        _LOG.warning("attention is XLA's, for cuDNN's does not run here: %s", first[:200])
        return plain
    return cudnn


def _try_out(attend: Attend, device: jax.Device) -> None:
    numbers = np.random.default_rng(0).standard_normal((3, 2, 64, 4, 64), np.float32)
    query, key, value = jax.device_put(numbers.astype(jnp.bfloat16), device)
    mask = jax.device_put(np.arange(64) < np.array([[64], [5]]), device)
    found, expected = (
        np.asarray(jax.jit(one)(query, key, value, mask), np.float32) for one in (attend, plain)
    )
    off = float(np.abs(found - expected).max())
    if not off < 0.05:  # bfloat16 rounds these to .01; and NaN is not below it
        raise ValueError(f"its results are off by {off}")
