"""Attention over padded texts, by cuDNN on the GPUs that support it and by XLA elsewhere."""

from __future__ import annotations

import logging
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

_LOG = logging.getLogger(__name__)


class Attend(Protocol):
    """A function that computes attention."""

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
        """Returns the attended values, [batch, length, heads, width], in the query's dtype.

        Args:
          query: [batch, length, heads, width].
          key: [batch, length, key heads, width]. Each key head serves heads / key heads
            adjacent query heads (grouped-query attention).
          value: [batch, length, key heads, width].
          mask: [batch, length] bool, False on padding.
          bias: [heads, length, length], by query and key position; added to the scaled scores.
          causal: Whether a position attends only to itself and to earlier positions.
          scale: The factor of the scores; None for 1 / sqrt(width).
        """
        ...


_MASKED = -1e30  # finite, so that a text that is all padding has a finite vector
_MAX_WIDTH = 128  # the widest head that cuDNN supports on all GPUs


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
    """Computes attention by XLA, with the softmax in float32.

    The mask is broadcast over queries. The axis of heads precedes that of positions, and the
    result is normalized instead of the weights: on CPUs this takes half the time of
    jax.nn.dot_product_attention (benchmarks/NOTES.md). Query heads that share a key head are
    stacked along the axis of positions, so that keys are not repeated.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    query, key, value = (states.transpose(0, 2, 1, 3) for states in (query, key, value))
    rows = query.reshape(*key.shape[:2], -1, key.shape[3])
    scores = scale * jnp.einsum("bhqw,bhkw->bhqk", rows, key, preferred_element_type="f4")
    if bias is not None:
        scores = scores + bias.reshape(1, *scores.shape[1:])
    visible = mask[:, None, None, :]
    if causal:
        visible = visible & _past(query.shape[2], query.shape[1] // key.shape[1])
    scores = jnp.where(visible, scores, _MASKED)
    weights = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
    total = weights.sum(axis=-1, keepdims=True)
    weights = weights.astype(value.dtype)
    summed = jnp.einsum("bhqk,bhkw->bhqw", weights, value, preferred_element_type="f4")
    return (summed / total).astype(query.dtype).reshape(query.shape).transpose(0, 2, 1, 3)


def _past(length: int, repeats: int) -> jax.Array:
    """Returns the causal mask for stacked query heads, [1, 1, repeats * length, length]."""
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
    """Computes attention by cuDNN's flash attention, or by `plain` if cuDNN does not apply.

    cuDNN supports float16 and bfloat16, certain widths, and no bias. It takes lengths instead
    of a mask, so padding must be on the right.
    """
    half = query.dtype in (jnp.bfloat16, jnp.float16)
    fits = query.shape[-1] % 8 == 0 and query.shape[-1] <= _MAX_WIDTH
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
    """Returns `cudnn` if it runs on this device and agrees with `plain`, else `plain`.

    If only causal attention fails, the result is `cudnn_unless_causal`.
    """
    if device.platform != "gpu" or not _runs(device, causal=False):
        return plain
    return cudnn if _runs(device, causal=True) else cudnn_unless_causal


def cudnn_unless_causal(
    query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array, **options: Any
) -> jax.Array:
    """Computes causal attention by `plain`, and other attention by `cudnn`."""
    attend = plain if options.get("causal") else cudnn
    return attend(query, key, value, mask, **options)


def _runs(device: jax.Device, *, causal: bool) -> bool:
    try:
        _compare(cudnn, device, causal)
    except Exception as error:  # JAX, XLA and cuDNN raise different types
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        kind = "causal attention" if causal else "attention"
        _LOG.warning("cuDNN %s is unavailable on this device; using XLA: %s", kind, first[:200])
        return False
    return True


def _compare(attend: Attend, device: jax.Device, causal: bool) -> None:
    """Raises an error if `attend` fails or differs from `plain`.

    Causal attention is tried with two query heads for each key head.
    """
    numbers = np.random.default_rng(0).standard_normal((3, 2, 64, 4, 64), np.float32)
    query, key, value = jax.device_put(numbers.astype(jnp.bfloat16), device)
    if causal:
        key, value = key[:, :, :2], value[:, :, :2]
    mask = jax.device_put(np.arange(64) < np.array([[64], [5]]), device)
    actual, expected = (
        np.asarray(jax.jit(partial(f, causal=causal))(query, key, value, mask), np.float32)
        for f in (attend, plain)
    )
    difference = float(np.abs(actual - expected).max())
    if not difference < 0.05:  # also if it is NaN; bfloat16 rounds these values to 0.01
        raise ValueError(f"its results differ by {difference}")
