"""A tiny task whose values NumPy computes: texts, an encoder, and a trainer.

    python -m tests.e2e.world DIRECTORY STEPS SECONDS

runs the trainer: an Orbax CheckpointManager saves a table of word vectors at each of STEPS
steps, SECONDS apart, from eight devices, and keeps the last two.
"""

import json
import os
import sys
import time
from pathlib import Path

WORDS = "red green blue black white round square long short heavy".split()
PASSAGES = {
    f"p{i}": f"{a} {b}" for i, (a, b) in enumerate((a, b) for a in WORDS[:5] for b in WORDS[5:])
}
QUERIES = {"q0": "red round", "q1": "blue", "q2": "white heavy", "q3": "black short long"}
QRELS = {"q0": {"p0": 1}, "q1": {"p10": 2, "p11": 1}, "q2": {"p24": 1}, "q3": {"p18": 1}}
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS]
DIM = 4


def table(step):
    """Returns the parameters of a step, random with the step as seed."""
    import numpy as np

    return np.random.default_rng(step).normal(size=(len(VOCABULARY), DIM)).astype("float32")


def expected(step, passages=PASSAGES, queries=QUERIES):
    """Returns RR@10 of each query at a step, computed with NumPy."""
    return reciprocal_ranks(table(step), table(step), passages, queries)


def reciprocal_ranks(query_table, passage_table, passages=PASSAGES, queries=QUERIES):
    """Returns RR@10 of each query for the tables of two towers."""
    import numpy as np

    def encode(text, table):
        rows = [VOCABULARY.index(word) for word in ["[CLS]", *text.split(), "[SEP]"]]
        return table[rows].mean(0)

    vectors = np.array([encode(text, passage_table) for text in passages.values()])
    values = []
    for query, text in queries.items():
        order = np.argsort(-(vectors @ encode(text, query_table)), kind="stable")[:10]
        ranks = [r for r, row in enumerate(order, 1) if list(passages)[row] in QRELS[query]]
        values.append(1 / ranks[0] if ranks else 0.0)
    return values


def encoder():
    """The factory for --encoder=tests.e2e.world:encoder."""
    import flax.linen as nn

    from jaxval.encoders.adapter import from_linen

    class WordVectors(nn.Module):
        @nn.compact
        def __call__(self, ids, mask):
            states = nn.Embed(len(VOCABULARY), DIM, name="words")(ids) * mask[..., None]
            return states.sum(1) / mask.sum(1, keepdims=True).clip(1)

    return from_linen(WordVectors())


def write_texts(root, passages=PASSAGES, queries=QUERIES, qrels=QRELS):
    """Writes a BEIR folder and returns it."""
    (root / "qrels").mkdir(parents=True)
    for name, texts in {"corpus": passages, "queries": queries}.items():
        lines = [json.dumps({"_id": id_, "text": text}) for id_, text in texts.items()]
        (root / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    rows = [f"{q}\t{d}\t{g}" for q, grades in qrels.items() for d, g in grades.items()]
    (root / "qrels" / "test.tsv").write_text(
        "query-id\tcorpus-id\tscore\n" + "\n".join(rows) + "\n"
    )
    return root


def write_tokenizer(root):
    """Writes a tokenizer folder with one id for each word, and returns it."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    ids = {word: i for i, word in enumerate(VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]"
    ).save_pretrained(root)
    return root


def save(directory, steps, *, devices=1, seconds=0.0, complete=True, committed=None):
    """Saves checkpoints as the trainer does."""
    import jax
    import numpy as np
    import optax
    import orbax.checkpoint as ocp
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    mesh = Mesh(np.array(jax.devices()[:devices]), ("data",))
    everywhere = NamedSharding(mesh, PartitionSpec())
    options = ocp.CheckpointManagerOptions(max_to_keep=2)
    with ocp.CheckpointManager(directory, options=options) as manager:
        for step in steps:
            params = {"words": {"embedding": table(step)}}
            state = {"params": params, "opt_state": optax.adam(1e-3).init(params)}
            state = jax.device_put(state, everywhere)
            manager.save(step, args=ocp.args.StandardSave(state))
            if committed is not None:
                manager.wait_until_finished()
                committed(step)
            time.sleep(seconds)
    if complete:
        (Path(directory) / "train_complete").touch()


if __name__ == "__main__":
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
    os.environ["JAX_PLATFORMS"] = "cpu"
    save(Path(sys.argv[1]), range(int(sys.argv[2])), devices=8, seconds=float(sys.argv[3]))
