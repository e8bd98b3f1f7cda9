"""Reads the encoder that the settings name, and how its texts become tokens."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxval.canonical import digest
from jaxval.checkpoints import restore
from jaxval.checkpoints.commit import committed
from jaxval.checkpoints.lora import Base
from jaxval.checkpoints.restore import Restored
from jaxval.checkpoints.trees import flatten, show
from jaxval.config import Evaluation, Model
from jaxval.corpus import readers, tokenizer
from jaxval.corpus.token_store import Recipe
from jaxval.corpus.tokenizer import Tokenizer
from jaxval.encoders import factory, folder
from jaxval.encoders.attention import Attend, plain
from jaxval.encoders.entries import Limit
from jaxval.encoders.folder import ModelFolder
from jaxval.errors import EncoderError, JaxvalError, UserError
from jaxval.records import Encoder, Params

_LOG = logging.getLogger(__name__)

_PASSAGE_LEN, _QUERY_LEN = 256, 64


@dataclass(frozen=True)
class Encoding:
    """The encoder and how its texts become tokens.

    Attributes:
      build: Makes the encoder, with the attention that suits the device.
      tokenizer: The encoder's tokenizer.
      passages: How a passage becomes tokens.
      queries: How a query becomes tokens.
      base: The parameters that the checkpoints hold adapters of. None if the checkpoints
        hold whole parameters.
      identity: What the settings of a series keep of the encoder.
      folder: The model folder. None if the encoder is not built from one.
    """

    build: Callable[[Attend], Encoder]
    tokenizer: Tokenizer
    passages: Recipe
    queries: Recipe
    base: Base | None
    identity: dict[str, Any]
    folder: ModelFolder | None = None


@dataclass(frozen=True)
class _Traits:
    """What an encoder requires of its texts. None where it has no requirement.

    Attributes:
      tokenizer: The folder of its tokenizer.
      default_len: Maximum number of tokens of a text, unless a setting overrides it.
      limit: Maximum number of tokens of a text that the encoder can take.
      vocabulary: Number of token ids that the encoder has embeddings for.
      passage_prefix: The text before each passage.
      query_prefix: The text before each query.
    """

    tokenizer: str | None = None
    default_len: int | None = None
    limit: Limit | None = None
    vocabulary: int | None = None
    passage_prefix: str | None = None
    query_prefix: str | None = None

    def length(self, setting: int | None, fallback: int) -> int:
        """Returns the maximum number of tokens of a text.

        Args:
          setting: The user's. None takes the encoder's default, within its limit.
          fallback: The default where the encoder has none.
        """
        default = self.default_len or fallback
        return setting or (default if self.limit is None else min(default, self.limit.tokens))

    def check(self, tokenizer: Tokenizer, *, passage_len: int, query_len: int) -> None:
        """Raises EncoderError if the encoder cannot take these lengths or this tokenizer."""
        for kind, length in {"passage": passage_len, "query": query_len}.items():
            if self.limit is not None and length > self.limit.tokens:
                raise EncoderError(
                    f"`{kind}_max_len={length}`: the model has {self.limit};"
                    f" set it to {self.limit.tokens} or less"
                )
        if self.vocabulary is not None and tokenizer.vocabulary > self.vocabulary:
            raise EncoderError(
                f"the tokenizer has {tokenizer.vocabulary} ids and the model {self.vocabulary}"
                " embeddings: `tokenizer` and `model` do not belong together"
            )


def read_encoding(settings: Evaluation) -> Encoding:
    """Reads the encoder and its tokenizer, without opening a device.

    Raises:
      UserError: A setting is wrong, or names something that cannot be read.
    """
    texts, model = settings.texts, settings.model
    readers.check_template(texts.passage_template)
    source = _from_folder(model) if model.folder else _from_code(model)
    traits = source.traits
    passage_len = traits.length(texts.passage_max_len, _PASSAGE_LEN)
    query_len = traits.length(texts.query_max_len, _QUERY_LEN)
    passage_prefix = _prefix("passage", texts.passage_prefix, traits.passage_prefix)
    query_prefix = _prefix("query", texts.query_prefix, traits.query_prefix)
    loaded = tokenizer.load(model.tokenizer or traits.tokenizer or "")
    traits.check(loaded, passage_len=passage_len, query_len=query_len)
    base = _base(model, param_specs(source.build(plain), model))
    return Encoding(
        build=source.build,
        tokenizer=loaded,
        passages=Recipe(texts.passage_template, passage_prefix, passage_len),
        queries=Recipe("{text}", query_prefix, query_len),
        base=base,
        identity=source.identity | _params_identity(model, base),
        folder=source.folder,
    )


def param_specs(encoder: Encoder, model: Model) -> Params:
    """Returns the shapes and dtypes of the parameters on the device.

    The encoder of a model folder determines which of its leaves stay in float32. For any
    other encoder, all floating leaves are cast to `dtype`.
    """
    tree = encoder.abstract_params()
    if model.folder:
        return tree

    def cast(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        floating = jnp.issubdtype(leaf.dtype, jnp.floating)
        return jax.ShapeDtypeStruct(leaf.shape, model.dtype if floating else leaf.dtype)

    return jax.tree.map(cast, tree)


@dataclass(frozen=True)
class _Source:
    """The encoder that the settings name.

    Attributes:
      build: Makes the encoder, with the attention that suits the device.
      identity: What identifies the encoder.
      traits: What the encoder requires of its texts.
      folder: The model folder. None if the encoder is not built from one.
    """

    build: Callable[[Attend], Encoder]
    identity: dict[str, Any]
    traits: _Traits = _Traits()
    folder: ModelFolder | None = None


def _from_code(model: Model) -> _Source:
    """Returns the encoder that is given as an object, or made by a factory."""
    if model.encoder is not None:
        encoder, name = model.encoder, "`encoder`"
        identity: dict[str, Any] = {"encoder": type(encoder).__name__}
    else:
        spec = model.factory or ""
        encoder, name = factory.load_factory(spec), f"`encoder={spec}`"
        identity = {"encoder": spec, "source": factory.source_digest(spec)}
    factory.check(encoder, name)
    leaves = flatten(encoder.abstract_params())
    shapes = {show(path): leaf.shape for path, leaf in leaves.items()}
    return _Source(lambda attend: encoder, identity | {"shapes": digest(shapes)})


def _from_folder(model: Model) -> _Source:
    """Returns the encoder that a model folder describes."""
    described = folder.read(model.folder or "")

    def build(attend: Attend) -> Encoder:
        return folder.build(
            described,
            dtype=model.dtype,
            pooling=model.pooling,
            normalize=model.normalize,
            dim=model.dim,
            attend=attend,
        )

    build(plain)  # Settings that do not fit the folder fail here, before a device is opened.
    identity = {
        "model": described.digest,
        "pooling": model.pooling or described.pooling,
        "normalize": described.normalize if model.normalize is None else model.normalize,
        "dim": model.dim,
    }
    traits = _Traits(
        tokenizer=str(described.path),
        default_len=described.max_seq_length,
        limit=described.config.limit,
        vocabulary=described.config.vocab_size,
        passage_prefix=described.passage_prefix,
        query_prefix=described.query_prefix,
    )
    return _Source(build, identity, traits, described)


def _prefix(kind: str, setting: str | None, prompt: str | None) -> str:
    """Returns the text before each text of a kind, and logs it.

    Args:
      kind: `query` or `passage`.
      setting: The user's. None takes the prompt.
      prompt: The model folder's.
    """
    prefix = (prompt or "") if setting is None else setting
    source = "`model`" if setting is None else f"`{kind}_prefix`"
    if prefix:
        _LOG.info("%s prefix: %r (from %s)", kind, prefix, source)
    elif prompt:
        _LOG.info("%s prefix: none (from %s); `model` has %r", kind, source, prompt)
    return prefix


def _base(model: Model, abstract_params: Params) -> Base | None:
    """Reads the parameters that `base_params` names into host memory.

    Raises:
      UserError: They cannot be read, or are not the encoder's.
    """
    if model.base_params is None or model.lora_alpha is None:
        return None
    try:
        restored = read_base(model.base_params, abstract_params)
    except JaxvalError as error:
        raise UserError(f"`base_params={model.base_params}`: {error}") from error
    if restored.untied:
        raise UserError(
            f"`base_params={model.base_params}` holds two towers ({restored.found_at}): name a"
            " checkpoint with one, from which both towers were initialized"
        )
    _LOG.info("base parameters: %s (at %s)", model.base_params, restored.found_at)
    return Base(restored.params, model.lora_alpha)


def read_base(name: str, abstract_params: Params) -> Restored:
    """Reads the encoder's parameters from a checkpoint or from a model folder's weights.

    Args:
      name: A checkpoint's directory, or a model folder or its name on the hub.
      abstract_params: The tree that the encoder expects, of jax.ShapeDtypeStruct.

    Raises:
      JaxvalError: The parameters cannot be read, or are not the encoder's.
    """
    if (checkpoint := restore.find_checkpoint(name)) is not None:
        return restore.read(checkpoint, abstract_params)
    try:
        described = folder.read(name, weights=True)
    except EncoderError as error:
        if any((Path(name).expanduser() / file).exists() for file in folder.DESCRIPTIONS):
            raise
        raise EncoderError(f"{name} is {_not_parameters(name)}") from error
    weights, _ = folder.load_weights(described)
    return restore.fitted(weights, abstract_params)


def _not_parameters(name: str) -> str:
    """Returns what a name without parameters is, and what to name instead."""
    inside = committed(name)
    if inside:
        steps = ", ".join(str(checkpoint.step) for checkpoint in inside[:5])
        return f"a directory of checkpoints (steps {steps}): name one, e.g. {inside[-1].path}"
    return (
        "neither an Orbax checkpoint (one step's directory) nor a model folder (config.json"
        " beside its weights): name one of them"
    )


def _params_identity(model: Model, base: Base | None) -> dict[str, Any]:
    """Returns what identifies where the parameters come from, and their dtype."""
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
