"""Makes tests/encoders/goldens: tiny random models and what PyTorch computes with them.

Needs an environment of its own, with `torch`, then `transformers sentence-transformers`:
    python scripts/make_goldens.py
"""

from __future__ import annotations

import string
from pathlib import Path

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import modules
from transformers import BertConfig, BertModel, BertTokenizerFast

FOLDER = Path(__file__).parent.parent / "tests" / "encoders" / "goldens" / "bert"
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


def backbone() -> BertModel:
    """A random BertModel whose biases and layer norms are random too."""
    model = BertModel(CONFIG).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def sentence_transformer(model: BertModel) -> SentenceTransformer:
    """Its folder: BERT, mean pooling, a dense layer with tanh, normalization."""
    model.save_pretrained(FOLDER)
    (FOLDER / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    BertTokenizerFast(str(FOLDER / "vocab.txt")).save_pretrained(FOLDER)
    chain = [
        modules.Transformer(str(FOLDER)),
        modules.Pooling(32, pooling_mode="mean"),
        modules.Dense(32, 16, activation_function=torch.nn.Tanh()),
        modules.Normalize(),
    ]
    return SentenceTransformer(modules=chain, device="cpu").eval()


def main() -> None:
    """Writes the folder and `golden.npz`: ids, mask, last_hidden_state, vectors."""
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


if __name__ == "__main__":
    main()
