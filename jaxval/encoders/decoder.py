"""Decoders used as encoders: Llama, Mistral, Qwen2 and Qwen3.

The parameter tree is that of FlaxLlamaModel and FlaxMistralModel of transformers 4, whose
names Qwen's PyTorch models share; an lm_head is not read. rope_theta is taken from config.json
as in PyTorch, where the Flax models of transformers always use 10,000. Equations:
`modeling_llama.py`, `modeling_qwen3.py` and `modeling_rope_utils.py` of
huggingface/transformers.
"""

# mypy: allow-subclassing-any, allow-untyped-decorators

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxval.encoders.blocks import ACTIVATIONS, Part, check_length, split
from jaxval.encoders.entries import Limit, read, require, require_multiple

_QWEN = {
    "vocab_size": 151936,
    "intermediate_size": 22016,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {"intermediate_size": 11008, "max_position_embeddings": 2048},
    "mistral": {"num_key_value_heads": 8, "sliding_window": 4096},
    "qwen2": _QWEN,
    "qwen3": {**_QWEN, "head_dim": 128},
}
"""The defaults of transformers that differ from those of DecoderConfig, by model_type."""

_Rotation = tuple[jax.Array, jax.Array]
"""Cosine and sine of the angle of each pair of components, [batch, length, 1, width / 2]."""


@dataclass(frozen=True)
class Rope:
    """The settings of rotary position embeddings.

    Attributes:
      theta: The base of the frequencies.
      rope_type: `default`, `linear` or `llama3`. `llama3` scales only low frequencies.
      factor: The factor by which `linear` and `llama3` divide frequencies.
      low_freq_factor: `llama3` scales fully below this number of rotations in
        original_max_position_embeddings.
      high_freq_factor: `llama3` does not scale above this number of rotations.
      original_max_position_embeddings: The number of positions in pretraining, for `llama3`.
    """

    theta: float = 10000.0
    rope_type: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192

    def frequencies(self, width: int) -> np.ndarray:
        """Returns the angle per position of each pair of components, [width / 2] float32.

        Args:
          width: The components of a head.

        Returns:
          Angles in radians.
        """
        exponents = np.arange(0, width, 2, dtype=np.float32) / np.float32(width)
        unscaled = 1 / np.float32(self.theta) ** exponents
        if self.rope_type == "default":
            return unscaled
        if self.rope_type == "linear":
            return unscaled / np.float32(self.factor)
        rotations = self.original_max_position_embeddings * unscaled / np.float32(2 * math.pi)
        low, high = self.low_freq_factor, self.high_freq_factor
        kept = np.clip((rotations - low) / (high - low), 0, 1)
        return ((1 - kept) / self.factor + kept).astype(np.float32) * unscaled


@dataclass(frozen=True)
class DecoderConfig:
    """The entries of config.json that define the model.

    Attributes:
      vocab_size: Rows of the table of word embeddings.
      hidden_size: Components of a token state.
      intermediate_size: Components between the dense layers of a feed-forward part.
      num_hidden_layers: Number of layers.
      num_attention_heads: Heads of the query.
      num_key_value_heads: Heads of key and value; 0 for num_attention_heads.
      head_dim: Components of a head; 0 for hidden_size / num_attention_heads.
      hidden_act: The activation of feed-forward parts, a key of blocks.ACTIVATIONS.
      max_position_embeddings: The maximum number of positions.
      rms_norm_eps: The epsilon of norms.
      initializer_range: The standard deviation of initial parameters.
      rope: The rotary embeddings, from rope_theta and rope_scaling, or from rope_parameters.
      window: The number of positions that attention reaches back; None for all.
      qkv_bias: Whether the dense layers of query, key and value have a bias.
      out_bias: Whether the dense layer after attention has a bias.
      head_norms: Whether the heads of query and key are normalized.
    """

    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 14336
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int = 0
    head_dim: int = 0
    hidden_act: str = "silu"
    max_position_embeddings: int = 131072
    rms_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    rope: Rope = Rope()
    window: int | None = None
    qkv_bias: bool = False
    out_bias: bool = False
    head_norms: bool = False

    def __post_init__(self) -> None:
        heads, key_heads = self.num_attention_heads, self.key_heads
        if not self.head_dim:
            require_multiple("hidden_size", self.hidden_size, "num_attention_heads", heads)
        require_multiple("num_attention_heads", heads, "num_key_value_heads", key_heads)
        require_multiple("head_dim", self.width, "the components of a rotation,", 2)

    @classmethod
    def from_json(cls, config: Mapping[str, Any]) -> Self:
        """Reads the entries of config.json, and ignores those that have no effect here.

        Raises:
          EncoderError: They describe a model that is not supported.
        """
        name = config["model_type"]
        config = {**_DEFAULTS[name], **config}
        require(config, "hidden_act", ACTIVATIONS, "silu")
        require(config, "is_causal", [True, None], True)
        require(config, "mlp_bias", [False, None], False)
        biased = bool(config.get("attention_bias")) and name in ("llama", "qwen3")
        return read(
            cls,
            {
                **config,
                "rope": _rope(config),
                "window": _window(config),
                "qkv_bias": biased or name == "qwen2",
                "out_bias": biased,
                "head_norms": name == "qwen3",
            },
        )

    @property
    def width(self) -> int:
        """The components of a head."""
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def key_heads(self) -> int:
        """The heads of key and value."""
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def limit(self) -> Limit:
        """The maximum length of a text; it must not exceed the sliding window."""
        if self.window is not None and self.window < self.max_position_embeddings:
            return Limit(
                self.window, "positions in its sliding window, and longer texts are unsupported"
            )
        return Limit(self.max_position_embeddings)


def _rope(config: Mapping[str, Any]) -> Rope:
    """Reads the entries of transformers 5, rope_parameters, or of earlier versions."""
    entries = config.get("rope_parameters") or config.get("rope_scaling") or {}
    entries = {"type": "default", "rope_theta": config.get("rope_theta"), **entries}
    entries = {"rope_type": entries["type"], **entries}
    # PyTorch uses max_position_embeddings if this entry is missing.
    positions = {"original_max_position_embeddings": config.get("max_position_embeddings")}
    require({**config, **entries}, "rope_type", ["default", "linear", "llama3"], None)
    require({**config, **entries}, "partial_rotary_factor", [1.0, None], None)
    return read(Rope, {**positions, **entries}, renamed={"rope_theta": "theta"})


def _window(config: Mapping[str, Any]) -> int | None:
    """Returns the width of the sliding window, or None if no layer uses one."""
    window: int | None = config.get("sliding_window")
    if config["model_type"] == "mistral":
        return window
    layers = config.get("num_hidden_layers", 32)
    full = layers <= config.get("max_window_layers", 28)
    kinds = config.get("layer_types") or ["full_attention" if full else "sliding_attention"]
    used = config.get("use_sliding_window") and "sliding_attention" in kinds
    return window if used else None


class Decoder(Part):
    """A decoder without a head, from texts to token states.

    Texts may have any amount of padding on either side, which does not change the states of
    other positions.
    """

    @nn.compact
    def __call__(self, ids: jax.Array, mask: jax.Array) -> jax.Array:
        """Returns the token states, [batch, length, hidden].

        Args:
          ids: [batch, length] int32.
          mask: [batch, length] bool, False on padding.

        Raises:
          EncoderError: Length exceeds the number of positions, or the sliding window.
        """
        config = self.config
        check_length(ids, config.limit)
        hidden = self.table(config.vocab_size, config.hidden_size, "embed_tokens")(ids)
        rotation = _rotation(mask, config.rope.frequencies(config.width))
        hidden = self.stack(_Layer, "layers")(hidden, mask, rotation)
        return self.rms_norm("norm")(hidden)  # type: ignore[no-any-return]


class _Layer(Part):
    @nn.compact
    def __call__(self, hidden: jax.Array, mask: jax.Array, rotation: _Rotation) -> jax.Array:
        normed = self.rms_norm("input_layernorm")(hidden)
        hidden = hidden + self.part(_Attention, "self_attn")(normed, mask, rotation)
        normed = self.rms_norm("post_attention_layernorm")(hidden)
        return hidden + self.part(_FeedForward, "mlp")(normed)  # type: ignore[no-any-return]


class _Attention(Part):
    @nn.compact
    def __call__(self, hidden: jax.Array, mask: jax.Array, rotation: _Rotation) -> jax.Array:
        config = self.config
        query = self._heads(hidden, config.num_attention_heads, "q")
        key = self._heads(hidden, config.key_heads, "k")
        value = self._heads(hidden, config.key_heads, "v")
        if config.head_norms:
            query, key = self.rms_norm("q_norm")(query), self.rms_norm("k_norm")(key)
        query, key = _rotated(query, rotation), _rotated(key, rotation)
        attended = self.attend(query, key, value, mask, causal=True)
        attended = attended.reshape(*hidden.shape[:2], -1)
        return self.dense(config.hidden_size, "o_proj", config.out_bias)(attended)  # type: ignore[no-any-return]

    def _heads(self, hidden: jax.Array, count: int, name: str) -> jax.Array:
        dense = self.dense(count * self.config.width, f"{name}_proj", self.config.qkv_bias)
        return split(dense(hidden), count)


class _FeedForward(Part):
    @nn.compact
    def __call__(self, hidden: jax.Array) -> jax.Array:
        width, activation = self.config.intermediate_size, ACTIVATIONS[self.config.hidden_act]
        gate = activation(self.dense(width, "gate_proj", bias=False)(hidden))
        inner = gate * self.dense(width, "up_proj", bias=False)(hidden)
        return self.dense(self.config.hidden_size, "down_proj", bias=False)(inner)  # type: ignore[no-any-return]


def _rotation(mask: jax.Array, frequencies: np.ndarray) -> _Rotation:
    """Returns the rotation of each token, in float32.

    Positions are counted by the mask, so they do not depend on the side of the padding.
    """
    positions = jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0).astype(jnp.float32)
    angles = positions[:, :, None, None] * frequencies[None, None, None, :]
    return jnp.cos(angles), jnp.sin(angles)


def _rotated(states: jax.Array, rotation: _Rotation) -> jax.Array:
    """Returns the states, [batch, length, heads, width], with rotated pairs of components."""
    cosine, sine = rotation
    first, second = jnp.split(states.astype(jnp.float32), 2, axis=-1)
    rotated = [first * cosine - second * sine, second * cosine + first * sine]
    return jnp.concatenate(rotated, axis=-1).astype(states.dtype)
