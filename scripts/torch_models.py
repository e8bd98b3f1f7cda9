"""PyTorch models of each family with random weights, for parity.py and make_goldens.py."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import transformers


@dataclass(frozen=True)
class Sizes:
    """The sizes that all families have.

    Attributes:
      vocab: Number of token ids.
      width: Width of the states.
      layers: Number of layers.
      heads: Number of attention heads, an even number.
      inner: Width inside the feed-forward layers.
      positions: Maximum length in tokens.
    """

    vocab: int
    width: int
    layers: int
    heads: int
    inner: int
    positions: int


LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 256,
}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}
USUAL = {"rope_type": "default", "rope_theta": 1e6}
KINDS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "roberta": ("Roberta", {"type_vocab_size": 1, "layer_norm_eps": 1e-5}),
    "xlm-roberta": ("XLMRoberta", {"type_vocab_size": 1, "layer_norm_eps": 1e-5}),
    "distilbert": ("DistilBert", {}),
    "mpnet": ("MPNet", {}),
    "t5": ("T5", {"feed_forward_proj": "relu"}),
    "t5-gated": ("T5", {"feed_forward_proj": "gated-gelu"}),
    "llama": ("Llama", {"rope_parameters": LLAMA3, "attention_bias": True}),
    "mistral": ("Mistral", {"rope_parameters": LINEAR, "sliding_window": None}),
    "qwen2": ("Qwen2", {"rope_parameters": USUAL}),
    "qwen3": ("Qwen3", {"rope_parameters": USUAL}),
}
"""Name -> transformers' name of the family, and further entries of its config."""


def entries(family: str, sizes: Sizes) -> dict[str, Any]:
    """Returns the entries of a family's config for these sizes.

    Heads are twice as wide as `width / heads` where the family allows it.
    """
    if family == "T5":
        return {
            "d_model": sizes.width,
            "d_kv": 2 * sizes.width // sizes.heads,
            "d_ff": sizes.inner,
            "num_layers": sizes.layers,
            "num_heads": sizes.heads,
        }
    if family == "DistilBert":
        return {
            "dim": sizes.width,
            "hidden_dim": sizes.inner,
            "n_layers": sizes.layers,
            "n_heads": sizes.heads,
            "max_position_embeddings": sizes.positions,
        }
    wide = {"head_dim": 2 * sizes.width // sizes.heads} if family == "Qwen3" else {}
    return wide | {
        "hidden_size": sizes.width,
        "intermediate_size": sizes.inner,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.heads // 2,
        "max_position_embeddings": sizes.positions,
    }


def model(name: str, sizes: Sizes) -> Any:
    """Returns a random model of one of KINDS. Its biases and norms are random as well."""
    family, more = KINDS[name]
    config = getattr(transformers, f"{family}Config")(
        vocab_size=sizes.vocab,
        initializer_range=sizes.width**-0.5,
        **{**entries(family, sizes), **more},
    )
    kind = "T5EncoderModel" if family == "T5" else f"{family}Model"
    network = getattr(transformers, kind)(config).float().eval()
    with torch.no_grad():
        for path, parameter in network.named_parameters():
            if parameter.ndim == 1 or "relative_attention_bias" in path:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return network


def states(network: Any, ids: Any, mask: Any) -> Any:
    """Returns the last hidden state for arrays ids and mask, [batch, length]."""
    with torch.no_grad():
        inputs = {"input_ids": torch.tensor(ids).long(), "attention_mask": torch.tensor(mask)}
        return network(**inputs).last_hidden_state.numpy()
