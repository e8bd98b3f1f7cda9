"""The encoder that the flags name, and how its texts become tokens."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxval.checkpoints import restore
from jaxval.checkpoints.lora import Base
from jaxval.checkpoints.restore import Restored
from jaxval.checkpoints.trees import flatten, show
from jaxval.config import Config, Model
from jaxval.corpus import readers, tokenizer
from jaxval.corpus.token_store import Recipe
from jaxval.corpus.tokenizer import Tokenizer
from jaxval.encoders import factory, folder
from jaxval.encoders.attention import Attend, plain
from jaxval.encoders.entries import Limit
from jaxval.errors import EncoderError, JaxvalError, UserError
from jaxval.records import Encoder, Params

_LOG = logging.getLogger(__name__)

_PASSAGE_LEN, _QUERY_LEN = 256, 64


@dataclass(frozen=True)
class Encoding:
    """The encoder and how its texts become tokens.

    Attributes:
      build: makes the encoder, of attention that suits the device.
      base: what the checkpoints hold adapters of, if they do.
      identity: what a series keeps of it.
    """

    build: Callable[[Attend], Encoder]
    tokenizer: Tokenizer
    passages: Recipe
    queries: Recipe
    base: Base | None
    identity: dict[str, Any]


@dataclass(frozen=True)
class _Traits:
    """What an encoder asks of its texts; None where it does not say.

    Attributes:
      tokenizer: where its tokenizer lies.
      usual: tokens of a text that it was made for.
      limit: tokens of a text at most.
      vocabulary: token ids at most.
      passage_prefix, query_prefix: what stands before a text.
    """

    tokenizer: str | None = None
    usual: int | None = None
    limit: Limit | None = None
    vocabulary: int | None = None
    passage_prefix: str | None = None
    query_prefix: str | None = None

    def length(self, flag: int | None, otherwise: int) -> int:
        """Tokens of a text: what the flag says; else what is usual, within the limit."""
        usual = self.usual or otherwise
        return flag or (usual if self.limit is None else min(usual, self.limit.tokens))

    def check(self, made: Tokenizer, *, passage_len: int, query_len: int) -> None:
        """Raises EncoderError unless these tokens are within it."""
        for flag, length in {"passage": passage_len, "query": query_len}.items():
            if self.limit is not None and length > self.limit.tokens:
                raise EncoderError(
                    f"`{flag}_max_len={length}`: the model has {self.limit};"
                    f" set it to {self.limit.tokens} or less"
                )
        if self.vocabulary is not None and made.vocabulary > self.vocabulary:
            raise EncoderError(
                f"the tokenizer has {made.vocabulary} ids and the model {self.vocabulary}"
                " embeddings: `tokenizer` and `model` do not belong together"
            )


def read_encoding(config: Config) -> Encoding:
    """All of it, but for a device.

    Raises:
      UserError: the settings are at fault.
    """
    texts, model = config.texts, config.model
    readers.check_template(texts.passage_template)
    build, identity, traits = _encoder(model)
    passage_len = traits.length(texts.passage_max_len, _PASSAGE_LEN)
    query_len = traits.length(texts.query_max_len, _QUERY_LEN)
    passage_prefix = _prefix("passage", texts.passage_prefix, traits.passage_prefix)
    query_prefix = _prefix("query", texts.query_prefix, traits.query_prefix)
    made = tokenizer.load(model.tokenizer or traits.tokenizer or "")
    traits.check(made, passage_len=passage_len, query_len=query_len)
    base = _base(model, held(build(plain), model))
    return Encoding(
        build=build,
        tokenizer=made,
        passages=Recipe(texts.passage_template, passage_prefix, passage_len),
        queries=Recipe("{text}", query_prefix, query_len),
        base=base,
        identity=identity | _params_identity(model, base),
    )


def ranking_settings(config: Config, encoding: Encoding) -> dict[str, Any]:
    """What of a series' settings decides, with the texts, how a checkpoint ranks passages."""
    return {
        "tokenizer": encoding.tokenizer.digest,
        "passages": asdict(encoding.passages),
        "query texts": asdict(encoding.queries),
        "encoder": encoding.identity,
        "similarity": config.search.similarity,
        "index_dtype": config.search.index_dtype,
    }


def held(encoder: Encoder, model: Model) -> Params:
    """The encoder's tree as a device shall hold it. A folder's encoder knows which of its
    leaves stay in float32; another's are all cast to `dtype`."""
    tree = encoder.abstract_params()
    if model.folder:
        return tree

    def cast(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        floating = jnp.issubdtype(leaf.dtype, jnp.floating)
        return jax.ShapeDtypeStruct(leaf.shape, model.dtype if floating else leaf.dtype)

    return jax.tree.map(cast, tree)


def _encoder(model: Model) -> tuple[Callable[[Attend], Encoder], dict[str, Any], _Traits]:
    """What makes the encoder, what identifies it, and what it asks of its texts."""
    if model.factory:
        encoder = factory.load_factory(model.factory)
        factory.check(encoder, f"`encoder={model.factory}`")
        shapes = {
            show(path): leaf.shape for path, leaf in flatten(encoder.abstract_params()).items()
        }
        source = factory.source_digest(model.factory)
        identity: dict[str, Any] = {
            "encoder": model.factory,
            "source": source,
            "shapes": digest(shapes),
        }
        return lambda attend: encoder, identity, _Traits()
    read = folder.read(model.folder or "")

    def build(attend: Attend) -> Encoder:
        return folder.build(
            read,
            dtype=model.dtype,
            pooling=model.pooling,
            normalize=model.normalize,
            dim=model.dim,
            attend=attend,
        )

    build(plain)  # Whatever does not fit fails here, before a device is opened.
    identity = {
        "model": read.digest,
        "pooling": model.pooling or read.pooling,
        "normalize": read.normalize if model.normalize is None else model.normalize,
        "dim": model.dim,
    }
    traits = _Traits(
        tokenizer=str(read.path),
        usual=read.max_seq_length,
        limit=read.config.limit,
        vocabulary=read.config.vocab_size,
        passage_prefix=read.passage_prefix,
        query_prefix=read.query_prefix,
    )
    return build, identity, traits


def _prefix(kind: str, flag: str | None, folder_says: str | None) -> str:
    """What stands before each text of a kind; said, since nothing else shows it."""
    prefix = (folder_says or "") if flag is None else flag
    source = "`model` says" if flag is None else f"`{kind}_prefix` says"
    if prefix:
        _LOG.info("before each %s stands %r, as %s", kind, prefix, source)
    elif folder_says:
        _LOG.info("before each %s stands nothing; `model` says %r", kind, folder_says)
    return prefix


def _base(model: Model, abstract_params: Params) -> Base | None:
    """What `base_params` names, in host memory.

    Raises:
      UserError: it cannot be read, or is not the encoder's.
    """
    if model.base_params is None or model.lora_alpha is None:
        return None
    try:
        restored = read_base(model.base_params, abstract_params)
    except JaxvalError as error:
        raise UserError(f"`base_params={model.base_params}`: {error}") from error
    if restored.untied:
        raise UserError(
            f"`base_params={model.base_params}` holds two towers, {restored.found_at}: name a"
            " checkpoint of one, which both had when the training began"
        )
    _LOG.info("the base is %s, parameters at %s", model.base_params, restored.found_at)
    return Base(restored.params, model.lora_alpha)


def read_base(name: str, abstract_params: Params) -> Restored:
    """The encoder's parameters out of a checkpoint, or of a model folder's weights.

    Raises:
      JaxvalError: it cannot be read, or is not the encoder's.
    """
    if (checkpoint := restore.find_checkpoint(name)) is not None:
        return restore.read(checkpoint, abstract_params)
    try:
        described = folder.read(name, weights=True)
    except EncoderError as error:
        if any((Path(name).expanduser() / file).exists() for file in folder.DESCRIPTIONS):
            raise
        raise EncoderError(
            "there is neither an Orbax checkpoint (one step's directory) nor a model folder"
            " (config.json beside its weights): name one of them"
        ) from error
    weights, _ = folder.load_weights(described)
    return restore.fitted(weights, abstract_params)


def _params_identity(model: Model, base: Base | None) -> dict[str, Any]:
    """What a series keeps of where the parameters come from."""
    paths = model.params_paths
    identity: dict[str, Any] = {"dtype": model.dtype, "params_path": paths.tree}
    if paths.query is not None:
        identity |= {"params_paths": [paths.query, paths.passage]}
    if base is not None:
        content = hashlib.sha256()
        for leaf in jax.tree.leaves(base.params):
            content.update(np.asarray(leaf).tobytes())
        identity |= {"base_params": content.hexdigest()[:16], "lora_alpha": base.alpha}
    return identity


def digest(value: Any) -> str:
    """Of what JSON can say."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
