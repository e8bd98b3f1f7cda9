"""Writes tests/encoders/goldens: tiny random models and what PyTorch computes with them.

Needs a separate environment with `torch`, then `transformers sentence-transformers`:
    python scripts/make_goldens.py
"""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import modules
from torch_models import KINDS, Sizes, model, states
from transformers import BertConfig, BertModel, BertTokenizerFast
from transformers.models.t5.modeling_t5 import T5Attention

GOLDENS = Path(__file__).parent.parent / "tests" / "encoders" / "goldens"
FOLDER = GOLDENS / "bert"
LETTERS = string.ascii_lowercase
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [*SPECIAL, *LETTERS, *("##" + letter for letter in LETTERS), *"012"]
CONFIG = BertConfig(
    vocab_size=len(WORDS),
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=64,
    max_position_embeddings=40,
    initializer_range=0.3,
)
TINY = Sizes(vocab=24, width=8, layers=2, heads=2, inner=12, positions=20)
CHAINS = {
    "t5": [  # as in GTR and Sentence-T5
        modules.Pooling(8, pooling_mode="mean"),
        modules.Dense(8, 6, bias=False, activation_function=torch.nn.Identity()),
        modules.Normalize(),
    ],
    "qwen3": [modules.Pooling(8, pooling_mode="lasttoken"), modules.Normalize()],
}
PROMPTS = {"qwen3": {"query": "Instruct: find the answer\nQuery:", "document": ""}}


def backbone() -> BertModel:
    """Returns a random BertModel. Its biases and layer norms are random as well."""
    made = BertModel(CONFIG).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return made


def sentence_transformer(made: BertModel) -> SentenceTransformer:
    """Writes its folder: BERT, mean pooling, a dense layer with tanh, normalization."""
    made.save_pretrained(FOLDER)
    (FOLDER / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    BertTokenizerFast(str(FOLDER / "vocab.txt")).save_pretrained(FOLDER)
    chain = [
        modules.Transformer(str(FOLDER)),
        modules.Pooling(32, pooling_mode="mean"),
        modules.Dense(32, 16, activation_function=torch.nn.Tanh()),
        modules.Normalize(),
    ]
    return SentenceTransformer(modules=chain, device="cpu").eval()


def bert() -> None:
    """Writes the folder `bert` and its `golden.npz`: ids, mask, last_hidden_state, vectors."""
    torch.manual_seed(0)
    FOLDER.mkdir(parents=True, exist_ok=True)
    chain = sentence_transformer(backbone())
    chain.save(str(FOLDER), create_model_card=False)
    lengths = torch.tensor([12, 7, 1, 9])
    mask = torch.arange(12)[None] < lengths[:, None]
    ids = torch.randint(5, 60, mask.shape) * mask
    with torch.no_grad():
        features = {"input_ids": ids, "attention_mask": mask.long()}
        out = chain(dict(features))
        hidden = chain[0](dict(features))["token_embeddings"]
    np.savez_compressed(
        FOLDER / "golden.npz",
        ids=ids.numpy().astype(np.int32),
        mask=mask.numpy(),
        last_hidden_state=hidden.numpy(),
        vectors=out["sentence_embedding"].numpy(),
    )


def family(name: str) -> None:
    """Writes a folder of one of KINDS, with a `golden.npz` of the same form."""
    torch.manual_seed(0)
    made, folder = model(name, TINY), GOLDENS / name
    made.save_pretrained(folder)
    pad = made.config.pad_token_id or 0
    mask = np.arange(12) < np.array([12, 7, 1, 9])[:, None]
    ids = np.random.default_rng(0).integers(5, TINY.vocab, mask.shape)
    ids[0, 5] = pad  # a padding token within the text
    ids = np.where(mask, ids, pad).astype(np.int32)
    golden = {"ids": ids, "mask": mask, "last_hidden_state": states(made, ids, mask)}
    if name in CHAINS:
        golden["vectors"] = chained(folder, CHAINS[name], golden["last_hidden_state"], mask)
    if name in PROMPTS:
        prompts = {"prompts": PROMPTS[name], "default_prompt_name": None}
        (folder / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    np.savez_compressed(folder / "golden.npz", **golden)


def chained(folder: Path, chain: list[Any], hidden: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Returns the vectors of sentence-transformers' modules, and saves the modules."""
    features = {"token_embeddings": torch.tensor(hidden), "attention_mask": torch.tensor(mask)}
    listed = [{"type": "sentence_transformers.models.Transformer", "path": ""}]
    for number, module in enumerate(chain, 1):
        kind = type(module).__name__
        place = folder / f"{number}_{kind}"
        place.mkdir(exist_ok=True)
        module.save(str(place))
        listed.append({"type": f"sentence_transformers.models.{kind}", "path": place.name})
        with torch.no_grad():
            features = module(features)
    (folder / "modules.json").write_text(json.dumps(listed))
    return features["sentence_embedding"].numpy()


def buckets() -> None:
    """Writes T5's buckets of the distances -300 to 300, by number and maximum distance."""
    distances = torch.arange(-300, 301)
    arrays = {
        f"{count}/{furthest}": T5Attention._relative_position_bucket(
            distances, num_buckets=count, max_distance=furthest
        )
        .numpy()
        .astype(np.uint8)
        for count, furthest in ((32, 128), (16, 100), (64, 256))
    }
    np.savez_compressed(GOLDENS / "buckets.npz", **arrays)


def main() -> None:
    """Writes all folders and the buckets."""
    bert()
    for name in KINDS:
        family(name)
    buckets()


if __name__ == "__main__":
    main()
