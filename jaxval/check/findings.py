"""What `check` reports as wrong: each finding is a line with its reason and its remedy.

A finding is an error if a validation would fail or its results would be meaningless, and a
warning otherwise. Each function looks for one problem, and returns an empty list if it is
not there.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from jaxval.check.footprint import DeviceMemory, HostMemory
from jaxval.check.newest import NewestCheckpoint
from jaxval.check.probe import MEASURE, Ranking
from jaxval.checkpoints.restore import Restored
from jaxval.corpus.tokenizer import Tokenizer
from jaxval.encoders.folder import ModelFolder
from jaxval.metrics.significance import LEVEL, p_value
from jaxval.records import Params

QUERIES_CUT, PASSAGES_CUT = 0.02, 0.2
"""Shares of texts; if more are truncated, it is a warning."""

ALIKE = 0.99
"""Mean cosine of two texts above which the vectors do not distinguish texts."""

_E5 = re.compile(r"(^|[-_/])e5([-_]|$)", re.IGNORECASE)
_INSTRUCTED = re.compile(r"mistral|instruct", re.IGNORECASE)


@dataclass(frozen=True)
class Finding:
    """Something that looks wrong.

    Attributes:
      text: What is wrong, why, and the remedy, in one line.
      error: Whether a validation would fail or its results would be meaningless.
    """

    text: str
    error: bool = False

    def __str__(self) -> str:
        return f"{'error' if self.error else 'warning'}: {self.text}"


def unreadable(newest: NewestCheckpoint) -> list[Finding]:
    """Reports that there is no checkpoint, or that it cannot be read."""
    if isinstance(newest.error, OSError):
        path = newest.checkpoint.path if newest.checkpoint else newest.directory
        text = f"{path} cannot be read: {newest.error}: check its permissions"
        return [Finding(text, error=True)]
    if newest.error is not None:
        return [Finding(str(newest.error), error=True)]
    if newest.checkpoint is not None:
        return []
    return [
        Finding(
            f"no checkpoint is committed in {newest.directory}, so the parameters, the vectors"
            " and their ranking were not checked: start the training, then check again",
            error=True,
        )
    ]


def truncated(kind: str, dataset: str, count: int, of: int, max_len: int) -> list[Finding]:
    """Reports that many texts are longer than the limit.

    Args:
      kind: `query` or `passage`.
      dataset: The set's name.
      count: Number of truncated texts; of passages, those that reach the limit.
      of: Number of all texts.
      max_len: The limit, in tokens.
    """
    allowed = {"query": QUERIES_CUT, "passage": PASSAGES_CUT}[kind]
    if count <= allowed * of:
        return []
    what = {"query": "queries are truncated to", "passage": "passages reach the limit of"}[kind]
    return [
        Finding(
            f"{dataset}: {count:,} of {of:,} {what} {max_len} tokens, and the encoder does not"
            f" see the rest: set `{kind}_max_len` to the value of the training, or to a higher"
            " one"
        )
    ]


def missing_prefixes(
    model: ModelFolder | None, name: str, query_prefix: str, passage_prefix: str
) -> list[Finding]:
    """Reports empty prefixes, if the model folder or the model's family has prefixes.

    Args:
      model: The model folder; None if there is none.
      name: The folder or hub name, as the user wrote it.
      query_prefix: Text before each query.
      passage_prefix: Text before each passage.
    """
    if model is None:
        return []
    prefixes = {"query": query_prefix, "passage": passage_prefix}
    prompts = {"query": model.query_prefix, "passage": model.passage_prefix}
    findings = []
    for kind, family in _family_prefixes(model, name).items():
        wanted = (
            prompts[kind] or family
        )  # sentence-transformers writes empty prompts by default
        if wanted and not prefixes[kind]:
            source = "the model folder's prompt is" if prompts[kind] else "E5 models expect"
            findings.append(
                f"`{kind}_prefix` is empty, but {source} {wanted!r}: unless your training left"
                f' it out, set `{kind}_prefix="{wanted}"`'
            )
    return [Finding(text) for text in findings]


def _family_prefixes(model: ModelFolder, name: str) -> dict[str, str]:
    """Returns the prefixes of the model's family, by its name or its base model's name."""
    try:
        config = json.loads((model.path / "config.json").read_text(encoding="utf-8"))
        names = [Path(name).name, str(config.get("_name_or_path", ""))]
    except (OSError, ValueError):
        names = [Path(name).name]
    e5 = any(_E5.search(text) and not _INSTRUCTED.search(text) for text in names)
    return {"query": "query: ", "passage": "passage: "} if e5 else {"query": "", "passage": ""}


def identical_towers(restored: Restored) -> list[Finding]:
    """Reports two towers with the same parameters."""
    if not restored.untied:
        return []
    pairs = zip(
        *(jax.tree.leaves(restored.params[tower]) for tower in ("query", "passage")),
        strict=True,
    )
    if not all(np.array_equal(query, passage) for query, passage in pairs):
        return []
    return [
        Finding(
            f"the two towers have the same parameters ({restored.found_at}): they are not"
            " trained yet, or the same tower was saved twice; if the towers are shared, name"
            " one subtree by `params_path`"
        )
    ]


def identical_vectors(kind: str, dataset: str, vectors: np.ndarray) -> list[Finding]:
    """Reports vectors that are nearly the same, or zero.

    Args:
      kind: `queries` or `passages`.
      dataset: The set's name.
      vectors: [n, dim] float32.
    """
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not norms.all():
        zeros = int((norms == 0).sum())
        text = f"{dataset}: {zeros} of {len(vectors)} vectors of {kind} are all zeros"
        return [Finding(f"{text}: check that the encoder is trained", error=True)]
    mean = mean_cosine(vectors)
    if mean <= ALIKE:
        return []
    return [
        Finding(
            f"{dataset}: the vectors of {len(vectors)} {kind} are nearly identical (mean cosine"
            f" {mean:.4f}), so the search cannot distinguish them: check `pooling`, that the"
            " tokenizer is the training's, and that the parameters are trained",
            error=True,
        )
    ]


def mean_cosine(vectors: np.ndarray) -> float:
    """Returns the mean cosine of two of these vectors, [n, dim]; 0 if there is only one."""
    if (n := len(vectors)) < 2:
        return 0.0
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return float((np.square(unit.sum(0)).sum() - n) / (n * (n - 1)))


def random_ranking(dataset: str, ranking: Ranking, passages: int) -> list[Finding]:
    """Reports a ranking that is no better than a random one.

    Args:
      dataset: The set's name.
      ranking: How the sample was ranked.
      passages: Number of passages in the sample.
    """
    if ranking.luck >= 1 or ranking.mean > ranking.luck:
        return []
    return [
        Finding(
            f"{dataset}: {MEASURE} is {ranking.mean:.3f} on {len(ranking.values)} queries and"
            f" {passages} passages, and random rankings reach {ranking.luck:.3f}: check"
            " `pooling`, the prefixes, the order of the towers, that the tokenizer is the"
            " training's, and that the parameters are trained",
            error=True,
        )
    ]


def better_similarity(
    dataset: str, chosen: str, ranking: Ranking, other: Ranking
) -> list[Finding]:
    """Reports that the other similarity ranks significantly better.

    Args:
      dataset: The set's name.
      chosen: `dot` or `cosine`, as the user chose.
      ranking: By the chosen similarity.
      other: By the other one.
    """
    better = other.mean > ranking.mean
    if not better or p_value(other.values, ranking.values) >= LEVEL:
        return []
    name = "cosine" if chosen == "dot" else "dot"
    return [
        Finding(
            f"{dataset}: the vectors are not of unit length, and `similarity={name}` ranks"
            f" better than {chosen} ({MEASURE} {other.mean:.3f} against {ranking.mean:.3f}):"
            " choose the similarity of the training"
        )
    ]


def missing_closing_token(
    model: ModelFolder | None, pooling: str | None, tokenizer: Tokenizer
) -> list[Finding]:
    """Reports last-token pooling of texts that do not end with a special token.

    Args:
      model: The model folder, or None if the encoder is not built from one.
      pooling: The setting `pooling`, or None if it is not set.
      tokenizer: The tokenizer.
    """
    if model is None or (pooling or model.pooling) != "last" or tokenizer.closing:
        return []
    return [
        Finding(
            "pooling takes the last token, and the tokenizer adds no token after a text, so the"
            " vectors are those of the last word: if the training added one, set add_eos_token"
            " in tokenizer_config.json, or save tokenizer.json as it was used"
        )
    ]


def small_embedding(params: Params, tokenizer: Tokenizer) -> list[Finding]:
    """Reports a tokenizer with more ids than any array of the encoder has rows.

    Args:
      params: The encoder's tree of arrays or shapes.
      tokenizer: The tokenizer.
    """
    longest = max((side for leaf in jax.tree.leaves(params) for side in leaf.shape), default=0)
    if tokenizer.vocabulary <= longest:
        return []
    return [
        Finding(
            f"the tokenizer has ids up to {tokenizer.vocabulary - 1:,}, and no array of the"
            f" encoder has more than {longest:,} rows: texts with higher ids get wrong vectors;"
            " set `tokenizer` to the one of the training"
        )
    ]


def missing_normalization(
    model: ModelFolder | None, normalize: bool | None, similarity: str
) -> list[Finding]:
    """Reports that the user turned off the normalization of the model folder.

    Args:
      model: The model folder; None if there is none.
      normalize: The user's setting; None if it is not set.
      similarity: `dot` or `cosine`.
    """
    if model is None or not model.normalize or normalize is not False or similarity == "cosine":
        return []
    return [
        Finding(
            "`normalize=false` keeps the vectors' lengths, but the model folder normalizes"
            " them, and `similarity=dot` depends on lengths: leave `normalize` out, or set"
            " `similarity=cosine`"
        )
    ]


def impossible_pins(checkpoint_dir: str, pin_dir: Path) -> list[Finding]:
    """Reports that hard links cannot lead from the checkpoints to the pins."""
    if "://" in checkpoint_dir or _device(Path(checkpoint_dir)) == _device(pin_dir):
        return []
    return [
        Finding(
            f"`pin_dir={pin_dir}` is on another file system than the checkpoints, so they"
            " cannot be protected from deletion: choose a directory beside `checkpoint_dir`"
        )
    ]


def _device(path: Path) -> int:
    """Returns the file system of a path, which need not exist yet."""
    return next(part for part in (path, *path.parents) if part.exists()).stat().st_dev


def too_little_memory(device: DeviceMemory, host: HostMemory) -> list[Finding]:
    """Reports too little memory on a device or on the host."""
    texts = []
    if device.too_small:
        texts.append(
            "a device has too little memory for the parameters and a batch: lower"
            " `batch_tokens`, or set `dtype=bfloat16`"
        )
    if host.too_small:
        texts.append(
            "the machine has too little memory available for prefetched checkpoints and"
            " vectors: lower `host_checkpoints`, or choose another machine"
        )
    return [Finding(text) for text in texts]


def reduced_batch(configured: int, fitting: int) -> list[Finding]:
    """Reports that the batch was too large for the device.

    Args:
      configured: Tokens per batch, as configured.
      fitting: Tokens per batch that fit.
    """
    if fitting == configured:
        return []
    return [
        Finding(
            f"a batch of {configured:,} tokens does not fit into the device's memory, but one"
            f" of {fitting:,} does: set `batch_tokens={fitting}`, so that validations do not"
            " start with batches that fail"
        )
    ]
