"""BERT in Flax linen, under the parameter names of transformers 4's FlaxBertModel.

What was trained with FlaxBertModel restores as it is; a pooler, if there is one, is not
asked for. There is no dropout: this is for encoding. Equations: `modeling_bert.py` of
huggingface/transformers.
"""

# mypy: allow-subclassing-any, allow-untyped-decorators
# (flax is skipped by mypy, so nn.Module and nn.compact are Any to it.)

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from jaxval.encoders.adapter import from_linen
from jaxval.encoders.attention import Attend, plain
from jaxval.errors import EncoderError
from jaxval.records import Params


def _gelu(inputs: jax.Array) -> jax.Array:
    """The exact one. flax's takes erfc, which keeps digits far below what is added to it
    afterwards, and costs twice as much on CPU."""
    return 0.5 * inputs * (1 + jax.lax.erf(inputs * 0.5**0.5))


ACTIVATIONS = {
    "gelu": _gelu,
    "gelu_new": partial(nn.gelu, approximate=True),
    "gelu_pytorch_tanh": partial(nn.gelu, approximate=True),
    "relu": nn.relu,
    "silu": nn.silu,
    "swish": nn.silu,
    "tanh": nn.tanh,
}
"""`hidden_act` of config.json -> function. `gelu` is the exact one, with erf."""


@dataclass(frozen=True)
class BertConfig:
    """The entries of config.json that shape the encoder, with transformers' defaults."""

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02

    @classmethod
    def from_json(cls, config: Mapping[str, Any]) -> BertConfig:
        """Reads what config.json holds; entries that do not matter here are passed over.

        Raises:
          EncoderError: it describes a model that this module does not compute.
        """
        _require(config, "model_type", ["bert"], "bert")
        _require(config, "position_embedding_type", ["absolute"], "absolute")
        _require(config, "is_decoder", [False], False)
        _require(config, "hidden_act", list(ACTIVATIONS), "gelu")
        known = {field.name for field in fields(cls)}
        result = cls(**{name: value for name, value in config.items() if name in known})
        if result.hidden_size % result.num_attention_heads:
            raise EncoderError(
                f"hidden_size {result.hidden_size} is no multiple of "
                f"num_attention_heads {result.num_attention_heads}; correct one of them"
            )
        return result


def _require(config: Mapping[str, Any], name: str, allowed: list[Any], default: Any) -> None:
    value = config.get(name, default)
    if value not in allowed:
        raise EncoderError(
            f"{name} {value!r} is not supported by the BERT encoder (it takes "
            f"{', '.join(map(repr, allowed))}); bring your own module with --encoder"
        )


class _Part(nn.Module):
    """What each part of the model has: the config, the dtype and two kinds of layers.

    Parameters have the dtype of the computation, so that a restore casts once and no
    batch casts again; layer norms keep theirs in float32.
    """

    config: BertConfig
    dtype: Any = jnp.float32
    attend: Attend = plain

    def part(self, kind: type[_Part], name: str) -> Any:
        return kind(self.config, self.dtype, self.attend, name=name)

    def dense(self, width: int, name: str = "dense") -> Any:
        init = nn.initializers.normal(self.config.initializer_range)
        return nn.Dense(
            width, dtype=self.dtype, param_dtype=self.dtype, kernel_init=init, name=name
        )

    def norm(self) -> Any:
        return nn.LayerNorm(self.config.layer_norm_eps, dtype=self.dtype, name="LayerNorm")


class Bert(_Part):
    """(ids [batch, length] int32, mask [batch, length] bool) -> [batch, length, hidden].

    Padding may have any width on the right; it changes no unpadded position's state.

    Attributes:
      config: sizes and the activation.
      dtype: of the computation, float32 or bfloat16. Softmax and the statistics of layer
        norms are in float32 always.
      attend: how attention is computed.
    """

    @nn.compact
    def __call__(self, ids: jax.Array, mask: jax.Array) -> jax.Array:
        """Token states.

        Raises:
          EncoderError: length exceeds the position embeddings.
        """
        if ids.shape[1] > self.config.max_position_embeddings:
            raise EncoderError(
                f"texts of {ids.shape[1]} tokens, but the model has "
                f"{self.config.max_position_embeddings} positions: lower "
                "--query_max_len and --passage_max_len"
            )
        hidden = self.part(_Embeddings, "embeddings")(ids)
        return self.part(_Encoder, "encoder")(hidden, mask)  # type: ignore[no-any-return]


class _Embeddings(_Part):
    @nn.compact
    def __call__(self, ids: jax.Array) -> jax.Array:
        config = self.config
        words = self._table(config.vocab_size, "word_embeddings")(ids)
        positions = self._table(config.max_position_embeddings, "position_embeddings")(
            jnp.arange(ids.shape[1])[None]
        )
        types = self._table(config.type_vocab_size, "token_type_embeddings")(
            jnp.zeros((1, 1), jnp.int32)
        )
        return self.norm()(words + types + positions)  # type: ignore[no-any-return]

    def _table(self, rows: int, name: str) -> Any:
        init = nn.initializers.normal(self.config.initializer_range)
        width = self.config.hidden_size
        return nn.Embed(rows, width, param_dtype=self.dtype, embedding_init=init, name=name)


class _Encoder(_Part):
    @nn.compact
    def __call__(self, hidden: jax.Array, mask: jax.Array) -> jax.Array:
        return self.part(_Layers, "layer")(hidden, mask)  # type: ignore[no-any-return]


class _Layers(_Part):
    @nn.compact
    def __call__(self, hidden: jax.Array, mask: jax.Array) -> jax.Array:
        for number in range(self.config.num_hidden_layers):
            hidden = self.part(_Layer, str(number))(hidden, mask)
        return hidden


class _Layer(_Part):
    @nn.compact
    def __call__(self, hidden: jax.Array, mask: jax.Array) -> jax.Array:
        hidden = self.part(_Attention, "attention")(hidden, mask)
        inner = self.part(_Intermediate, "intermediate")(hidden)
        return self.part(_Output, "output")(inner, hidden)  # type: ignore[no-any-return]


class _Attention(_Part):
    @nn.compact
    def __call__(self, hidden: jax.Array, mask: jax.Array) -> jax.Array:
        attended = self.part(_SelfAttention, "self")(hidden, mask)
        return self.part(_Output, "output")(attended, hidden)  # type: ignore[no-any-return]


class _SelfAttention(_Part):
    @nn.compact
    def __call__(self, hidden: jax.Array, mask: jax.Array) -> jax.Array:
        heads = (*hidden.shape[:2], self.config.num_attention_heads, -1)
        query, key, value = (
            self.dense(self.config.hidden_size, name)(hidden).reshape(heads)
            for name in ("query", "key", "value")
        )
        return self.attend(query, key, value, mask).reshape(hidden.shape)


class _Intermediate(_Part):
    @nn.compact
    def __call__(self, hidden: jax.Array) -> jax.Array:
        activation = ACTIVATIONS[self.config.hidden_act]
        return activation(self.dense(self.config.intermediate_size)(hidden))  # type: ignore[no-any-return]


class _Output(_Part):
    @nn.compact
    def __call__(self, hidden: jax.Array, residual: jax.Array) -> jax.Array:
        hidden = self.dense(self.config.hidden_size)(hidden)
        return self.norm()(hidden + residual)  # type: ignore[no-any-return]


def from_torch(state: Mapping[str, np.ndarray], config: BertConfig) -> tuple[Params, list[str]]:
    """Renames a PyTorch BertModel's state dict to the tree of `Bert(config)`.

    The encoder may stand under any one prefix (`bert.`), and layer norms may bear their
    old names (`gamma`, `beta`). Dtypes stay as they are.

    Returns:
      The tree, nested dictionaries of arrays, and the names in `state` that it does not
      take: pooler, heads, buffers.

    Raises:
      EncoderError: names are missing, or a shape is not the one that config implies.
    """
    sources = {_modern(name): name for name in state}
    prefix = _prefix(sources)
    shapes = traverse_util.flatten_dict(from_linen(Bert(config)).abstract_params())
    names = {path: prefix + _torch_name(path) for path in shapes}
    _require_all([name for name in names.values() if name not in sources])
    leaves = {path: _oriented(path, state[sources[name]]) for path, name in names.items()}
    for path, leaf in leaves.items():
        _require_shape(names[path], leaf.shape, shapes[path].shape)
    taken = {sources[name] for name in names.values()}
    return traverse_util.unflatten_dict(leaves), [name for name in state if name not in taken]


def _modern(name: str) -> str:
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace(
        "LayerNorm.beta", "LayerNorm.bias"
    )


def _prefix(names: Mapping[str, str]) -> str:
    anchor = "embeddings.word_embeddings.weight"
    found = [name.removesuffix(anchor) for name in names if name.endswith(anchor)]
    if len(found) != 1:
        raise EncoderError(
            f"the weights hold {len(found)} arrays named {anchor}, and should hold one: "
            "save a single BertModel with save_pretrained"
        )
    return found[0]


def _torch_name(path: tuple[str, ...]) -> str:
    return ".".join((*path[:-1], "bias" if path[-1] == "bias" else "weight"))


def _oriented(path: tuple[str, ...], array: np.ndarray) -> np.ndarray:
    # torch.nn.Linear keeps [out, in], a Dense kernel is [in, out].
    return array.T if path[-1] == "kernel" else array


def _require_all(missing: list[str]) -> None:
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise EncoderError(
            f"the weights lack {', '.join(missing[:3])}{more}, which config.json implies: "
            "take the config.json that was saved with them"
        )


def _require_shape(name: str, found: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if found != expected:
        raise EncoderError(
            f"{name} has shape {found} as a kernel or table, and config.json implies "
            f"{expected}: take the config.json that was saved with the weights"
        )
