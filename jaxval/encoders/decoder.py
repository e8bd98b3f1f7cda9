"""Decoders as encoders: Llama, Mistral, Qwen2 and Qwen3, their last token pooled.

Names and tree are those of transformers 4's FlaxLlamaModel and FlaxMistralModel, which
Qwen's PyTorch models share; an lm_head is not asked for. transformers' Flax models take
10,000 for rope_theta whatever config.json says; this takes what it says, as PyTorch does.
Equations: `modeling_llama.py`, `modeling_qwen3.py` and `modeling_rope_utils.py` of
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
"""Where transformers' defaults are not the record's."""

_Turns = tuple[jax.Array, jax.Array]
"""Cosine and sine of the angle of each pair of components, [batch, length, 1, width / 2]."""


@dataclass(frozen=True)
class Rope:
    """How positions turn the heads.

    Attributes:
      theta: the base of the frequencies.
      rope_type: `default`, `linear` or `llama3`.
      factor: by which positions are squeezed.
      low_freq_factor, high_freq_factor, original_max_position_embeddings: of `llama3`,
        which squeezes the slow ones alone.
    """

    theta: float = 10000.0
    rope_type: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192

    def frequencies(self, width: int) -> np.ndarray:
        """Radians a position, of each pair of a head's components; [width / 2] float32."""
        exponents = np.arange(0, width, 2, dtype=np.float32) / np.float32(width)
        whole = 1 / np.float32(self.theta) ** exponents
        if self.rope_type == "default":
            return whole
        if self.rope_type == "linear":
            return whole / np.float32(self.factor)
        turns = self.original_max_position_embeddings * whole / np.float32(2 * math.pi)
        kept = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        kept = np.clip(kept, 0, 1)
        return ((1 - kept) / self.factor + kept).astype(np.float32) * whole


@dataclass(frozen=True)
class DecoderConfig:
    """The entries of config.json that shape the model.

    Attributes:
      num_key_value_heads: 0 for as many as heads of the query.
      head_dim: 0 for an equal share of hidden_size.
      rope: from rope_theta and rope_scaling, or from rope_parameters.
      window: positions that a layer's attention reaches back; None for all.
      qkv_bias, out_bias: whether those layers have biases.
      head_norms: whether the heads of query and key are normed.
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
        heads, keys = self.num_attention_heads, self.keys
        if not self.head_dim:
            require_multiple("hidden_size", self.hidden_size, "num_attention_heads", heads)
        require_multiple("num_attention_heads", heads, "num_key_value_heads", keys)
        require_multiple("the width of a head", self.width, "the halves of a rotation,", 2)

    @classmethod
    def from_json(cls, config: Mapping[str, Any]) -> Self:
        """Reads what config.json holds; entries that do not matter here are passed over.

        Raises:
          EncoderError: it describes a model that this module does not compute.
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
        """Components of a head."""
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def keys(self) -> int:
        """Heads of key and value."""
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def limit(self) -> Limit:
        """How long a text may be: within the window all of it is seen."""
        if self.window is not None and self.window < self.max_position_embeddings:
            return Limit(
                self.window, "positions in its sliding window, which cannot slide here"
            )
        return Limit(self.max_position_embeddings)


def _rope(config: Mapping[str, Any]) -> Rope:
    """Of transformers 5 (rope_parameters) or before it (rope_theta and rope_scaling)."""
    said = config.get("rope_parameters") or config.get("rope_scaling") or {}
    said = {"type": "default", "rope_theta": config.get("rope_theta"), **said}
    said = {"rope_type": said["type"], **said}
    # PyTorch takes this one for the pretraining's, if the scaling does not say.
    positions = {"original_max_position_embeddings": config.get("max_position_embeddings")}
    require({**config, **said}, "rope_type", ["default", "linear", "llama3"], None)
    require({**config, **said}, "partial_rotary_factor", [1.0, None], None)
    return read(Rope, {**positions, **said}, renamed={"rope_theta": "theta"})


def _window(config: Mapping[str, Any]) -> int | None:
    window: int | None = config.get("sliding_window")
    if config["model_type"] == "mistral":
        return window
    layers = config.get("num_hidden_layers", 32)
    full = layers <= config.get("max_window_layers", 28)
    kinds = config.get("layer_types") or ["full_attention" if full else "sliding_attention"]
    used = config.get("use_sliding_window") and "sliding_attention" in kinds
    return window if used else None


class Decoder(Part):
    """(ids [batch, length] int32, mask [batch, length] bool) -> [batch, length, hidden].

    Padding may have any width on either side; it changes no unpadded position's state.
    """

    @nn.compact
    def __call__(self, ids: jax.Array, mask: jax.Array) -> jax.Array:
        """Token states.

        Raises:
          EncoderError: length exceeds the positions, or the sliding window.
        """
        config = self.config
        check_length(ids, config.limit)
        hidden = self.table(config.vocab_size, config.hidden_size, "embed_tokens")(ids)
        turns = _turns(mask, config.rope.frequencies(config.width))
        hidden = self.stack(_Layer, "layers")(hidden, mask, turns)
        return self.rms_norm("norm")(hidden)  # type: ignore[no-any-return]


class _Layer(Part):
    @nn.compact
    def __call__(self, hidden: jax.Array, mask: jax.Array, turns: _Turns) -> jax.Array:
        normed = self.rms_norm("input_layernorm")(hidden)
        hidden = hidden + self.part(_Attention, "self_attn")(normed, mask, turns)
        normed = self.rms_norm("post_attention_layernorm")(hidden)
        return hidden + self.part(_FeedForward, "mlp")(normed)  # type: ignore[no-any-return]


class _Attention(Part):
    @nn.compact
    def __call__(self, hidden: jax.Array, mask: jax.Array, turns: _Turns) -> jax.Array:
        config = self.config
        query = self._heads(hidden, config.num_attention_heads, "q")
        key = self._heads(hidden, config.keys, "k")
        value = self._heads(hidden, config.keys, "v")
        if config.head_norms:
            query, key = self.rms_norm("q_norm")(query), self.rms_norm("k_norm")(key)
        query, key = _turned(query, turns), _turned(key, turns)
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


def _turns(mask: jax.Array, frequencies: np.ndarray) -> _Turns:
    """Each token's angles, in float32.

    Tokens are counted by the mask, so that it does not matter where padding stands.
    """
    places = jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0).astype(jnp.float32)
    angles = places[:, :, None, None] * frequencies[None, None, None, :]
    return jnp.cos(angles), jnp.sin(angles)


def _turned(states: jax.Array, turns: _Turns) -> jax.Array:
    """The states, [batch, length, heads, width], each pair of components turned."""
    cosine, sine = turns
    first, second = jnp.split(states.astype(jnp.float32), 2, axis=-1)
    turned = [first * cosine - second * sine, second * cosine + first * sine]
    return jnp.concatenate(turned, axis=-1).astype(states.dtype)
