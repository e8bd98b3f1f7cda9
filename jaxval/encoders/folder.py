"""Hugging Face model folders and hub models: the encoder that they describe, and its weights.

These files are read: `config.json` and, if sentence-transformers wrote them, `modules.json`
with the folders that it names (`1_Pooling`, `2_Dense`, `2_Normalize`),
`sentence_bert_config.json`, and `config_sentence_transformers.json` for its prompts. PyTorch
is not needed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flax.serialization
import huggingface_hub
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from safetensors.numpy import load_file

from jaxval.canonical import canonical, digest
from jaxval.encoders import bert, decoder, distilbert, mpnet, roberta, t5
from jaxval.encoders.adapter import from_linen
from jaxval.encoders.attention import Attend, plain
from jaxval.encoders.text_encoder import ACTIVATIONS, Projection, TextEncoder
from jaxval.encoders.torch_names import from_flax, from_torch, is_flax
from jaxval.errors import EncoderError
from jaxval.records import Encoder, Params


@dataclass(frozen=True)
class Family:
    """The support of one `model_type` of config.json.

    Attributes:
      configure: Converts the content of config.json to the family's frozen record; raises
        EncoderError.
      backbone: Returns, for a record, dtype and attention, a linen module that maps (ids,
        mask) to token states.
      words: The name of the word table in PyTorch.
      pooling: The pooling of folders that do not specify one.
    """

    configure: Callable[[Mapping[str, Any]], Any]
    backbone: Callable[[Any, Any, Attend], Any]
    words: str = "embeddings.word_embeddings.weight"
    pooling: str = "cls"


_ROBERTA = Family(roberta.RobertaConfig.from_json, roberta.Roberta)
_DECODER = Family(
    decoder.DecoderConfig.from_json, decoder.Decoder, "embed_tokens.weight", "last"
)

FAMILIES = {
    "bert": Family(bert.BertConfig.from_json, bert.Bert),
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "distilbert": Family(distilbert.from_json, distilbert.DistilBert),
    "mpnet": Family(mpnet.from_json, mpnet.Mpnet),
    "t5": Family(t5.T5Config.from_json, t5.T5, "shared.weight", "mean"),
    "llama": _DECODER,
    "mistral": _DECODER,
    "qwen2": _DECODER,
    "qwen3": _DECODER,
}
"""`model_type` of config.json -> Family."""

DESCRIPTIONS = ("config.json", "modules.json")
"""A folder that contains one of these files is a model folder."""

_SAFETENSORS = ("model.safetensors", "model.safetensors.index.json")

DTYPES = ("float32", "bfloat16")
"""The dtypes in which an encoder can compute."""

_ORDER = ["Transformer", "Pooling", "Dense", "Normalize"]
_POOLINGS = {
    "cls": "cls",
    "cls_token": "cls",
    "mean": "mean",
    "mean_tokens": "mean",
    "lasttoken": "last",
}


_UNDIGESTED = frozenset(
    "path projection_path max_seq_length query_prefix passage_prefix".split()
)
"""The fields of a ModelFolder that do not define its encoder."""


@dataclass(frozen=True)
class ModelFolder:
    """The encoder that a folder describes.

    Attributes:
      path: The folder that contains config.json, the tokenizer and the weights.
      config: The family's record of config.json.
      family: The `model_type`, a key of FAMILIES.
      pooling: `cls`, `mean` or `last`.
      normalize: Whether vectors are scaled to unit length.
      projection: The dense layer over pooled vectors, or None.
      projection_path: The folder that contains the weights of that layer, or None.
      max_seq_length: The maximum number of tokens in a text, special tokens included; None if
        it is not specified.
      query_prefix: The prompt before queries; None if none is specified.
      passage_prefix: The prompt before passages; None if none is specified.
    """

    path: Path
    config: Any
    family: str
    pooling: str = "cls"
    normalize: bool = False
    projection: Projection | None = None
    projection_path: Path | None = None
    max_seq_length: int | None = None
    query_prefix: str | None = None
    passage_prefix: str | None = None

    @property
    def digest(self) -> str:
        """A digest of the encoder that the folder describes, of 16 hex digits.

        It covers neither the weights, nor where the folder is, nor how texts are prepared.
        """
        described = canonical(self)
        return digest({name: described[name] for name in described.keys() - _UNDIGESTED})


def download(name: str, patterns: list[str]) -> str:
    """Returns the local folder of a hub model, which is downloaded if it is not cached.

    Args:
      name: The name of the model on the hub.
      patterns: Glob patterns of the files to download.
    """
    return huggingface_hub.snapshot_download(name, allow_patterns=patterns)


def read(
    path_or_hub_name: str,
    *,
    weights: bool = False,
    download: Callable[[str, list[str]], str] = download,
) -> ModelFolder:
    """Reads the description of an encoder, without its weights.

    Without `modules.json`, vectors are not normalized, and the pooling is that of the family:
    `last` for decoders, `mean` for T5, `cls` for the others.

    Args:
      path_or_hub_name: An existing folder, or else the name of a model on the hub.
      weights: Whether to download the weights of a hub model too, for load_weights.
      download: Returns the local folder for a hub name and file patterns.

    Raises:
      EncoderError: The folder or model does not exist, cannot be read, or describes an encoder
        that is not supported.
    """
    root = _locate(path_or_hub_name, weights, download)
    modules = _modules(root)
    path = modules["Transformer"]
    family, config = _family(path / "config.json")
    limits = path / "sentence_bert_config.json"
    prompts = _Prompts.read(root / "config_sentence_transformers.json")
    return ModelFolder(
        path=path,
        config=config,
        family=family,
        pooling=(
            _pooling(modules["Pooling"]) if "Pooling" in modules else FAMILIES[family].pooling
        ),
        normalize="Normalize" in modules,
        projection=_projection(modules["Dense"]) if "Dense" in modules else None,
        projection_path=modules.get("Dense"),
        max_seq_length=_json(limits).get("max_seq_length") if limits.exists() else None,
        query_prefix=prompts.first("query"),
        passage_prefix=prompts.first("document", "passage", "corpus"),
    )


def _locate(name: str, weights: bool, download: Callable[[str, list[str]], str]) -> Path:
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    patterns = ["*.json", "*.txt", "*.model"] + ["*.safetensors"] * weights
    try:
        return Path(download(name, patterns))
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), "")
        raise EncoderError(
            f"`model={name}`: no such folder, and it cannot be downloaded from the Hugging Face"
            f" hub ({type(error).__name__}: {reason[:200]}); name a folder with config.json"
        ) from error


def _family(path: Path) -> tuple[str, Any]:
    config = _json(path)
    name = config.get("model_type", "")
    if name not in FAMILIES:
        raise EncoderError(
            f"{path}: model_type {name!r} is not supported (supported: {', '.join(FAMILIES)});"
            " use your own module with `encoder`"
        )
    try:
        return name, FAMILIES[name].configure(config)
    except EncoderError as error:
        raise EncoderError(f"{path}: {error}") from error


def _modules(root: Path) -> dict[str, Path]:
    """Returns the folders of the modules by type, in the order of modules.json."""
    listing = root / "modules.json"
    if not listing.exists():
        return {"Transformer": root}
    modules = [
        (str(entry.get("type", "")).rpartition(".")[2], root / entry.get("path", ""))
        for entry in _json(listing)
    ]
    kinds = [kind for kind, _ in modules if kind != "Dropout"]
    if kinds != [kind for kind in _ORDER if kind in kinds] or "Transformer" not in kinds:
        raise EncoderError(
            f"{listing}: the modules {' > '.join(kinds) or '(none)'} are not supported"
            f" (supported: {' > '.join(_ORDER)}, each at most once); use your own module with"
            " `encoder`"
        )
    return dict(modules)


def _pooling(folder: Path) -> str:
    path = folder / "config.json"
    config = _json(path)
    modes = config.get("pooling_mode") or [
        name.removeprefix("pooling_mode_")
        for name, on in config.items()
        if name.startswith("pooling_mode_") and on is True
    ]
    modes = [modes] if isinstance(modes, str) else modes
    if len(modes) != 1 or modes[0] not in _POOLINGS:
        raise EncoderError(
            f"{path}: pooling {' + '.join(modes) or '(none)'} is not supported (supported: cls,"
            " mean, lasttoken); use your own module with `encoder`"
        )
    pooling = _POOLINGS[modes[0]]
    if pooling == "mean" and config.get("include_prompt") is False:
        raise EncoderError(
            f"{path}: a mean without the prompt (include_prompt false) is not supported; use"
            " your own module with `encoder`"
        )
    return pooling


@dataclass(frozen=True)
class _Prompts:
    """The prompts that sentence-transformers puts before texts.

    Attributes:
      prompts: The prompts by name.
      default: The name of the default prompt, or None.
    """

    prompts: Mapping[str, str | None]
    default: str | None

    @classmethod
    def read(cls, path: Path) -> _Prompts:
        config = _json(path) if path.exists() else {}
        return cls(config.get("prompts") or {}, config.get("default_prompt_name"))

    def first(self, *names: str) -> str | None:
        """Returns the first existing prompt, chosen as encode_query and encode_document do."""
        candidates = [*names, *([self.default] if self.default else [])]
        prompts = [self.prompts[name] for name in candidates if name in self.prompts]
        return (prompts[0] or "") if prompts else None


def _projection(folder: Path) -> Projection:
    path = folder / "config.json"
    config = _json(path)
    activation = config.get("activation_function", "Tanh").rpartition(".")[2].lower()
    source = config.get("module_input_name", "sentence_embedding")
    plain = source == "sentence_embedding" and not config.get("use_residual")
    if activation not in ACTIVATIONS or not plain or "out_features" not in config:
        raise EncoderError(
            f"{path}: only a dense layer with out_features, over the sentence embedding,"
            f" followed by {' or '.join(ACTIVATIONS)}, without residual, is supported; use your"
            " own module with `encoder`"
        )
    return Projection(config["out_features"], config.get("bias", True), activation)


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise EncoderError(
            f"{path}:{error.lineno}: broken JSON ({error.msg}); fetch the file again"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise EncoderError(
            f"{path}: cannot be read ({type(error).__name__}); name a folder that"
            " save_pretrained wrote, with config.json"
        ) from error


def build(
    folder: ModelFolder,
    *,
    dtype: str = "float32",
    pooling: str | None = None,
    normalize: bool | None = None,
    dim: int | None = None,
    attend: Attend = plain,
) -> Encoder:
    """Returns the encoder that a folder describes, with tied towers.

    Args:
      folder: The result of `read`.
      dtype: The dtype of the computation, `float32` or `bfloat16`; vectors are float32.
      pooling: `cls`, `mean` or `last`; None for the folder's pooling.
      normalize: Whether vectors are scaled to unit length; None for the folder's setting.
      dim: The number of components that truncation keeps (Matryoshka); None for all.
      attend: The function that computes attention; see attention.fastest.

    Raises:
      EncoderError: An argument is out of range.
    """
    if dtype not in DTYPES:
        raise EncoderError(f"dtype {dtype!r} is unknown; choose one of {', '.join(DTYPES)}")
    encoder = from_linen(
        TextEncoder(
            backbone=FAMILIES[folder.family].backbone(folder.config, jnp.dtype(dtype), attend),
            pooling=folder.pooling if pooling is None else pooling,
            projection=folder.projection,
            dim=dim,
            normalized=folder.normalize if normalize is None else normalize,
        )
    )
    encoder.abstract_params()  # Traces the encoder, so that errors are raised here.
    return encoder


def load_weights(folder: ModelFolder) -> tuple[Params, list[str]]:
    """Reads the weights of a folder, from safetensors or from Flax's msgpack.

    Args:
      folder: The result of `read`.

    Returns:
      The parameter tree of `build(folder)`, in which floating arrays are float32, and the
      names of the arrays that the encoder does not use (pooler, heads).

    Raises:
      EncoderError: There are no weights, or they do not fit config.json.
    """
    family, state = FAMILIES[folder.family], _weights(folder.path)
    backbone = family.backbone(folder.config, jnp.dtype("float32"), plain)
    renamed = from_flax if is_flax(state, family.words) else from_torch
    params, ignored = renamed(state, backbone, family.words)
    if folder.projection_path and folder.projection:
        state = _safetensors(folder.projection_path)
        params["projection"] = _projection_weights(state, folder.projection_path)
    return params, ignored


def _projection_weights(state: Mapping[str, np.ndarray], folder: Path) -> Params:
    if "linear.weight" not in state:
        raise EncoderError(
            f"{folder}: its weights lack linear.weight; save the model again with "
            "sentence-transformers"
        )
    kernel = {"kernel": np.ascontiguousarray(state["linear.weight"].T)}
    bias = {"bias": state["linear.bias"]} if "linear.bias" in state else {}
    return kernel | bias


def _weights(folder: Path) -> dict[str, np.ndarray]:
    """Returns the arrays of a model by name; the parts of a name are joined by dots."""
    msgpack = folder / "flax_model.msgpack"
    if not any((folder / name).exists() for name in _SAFETENSORS) and msgpack.exists():
        return _msgpack(msgpack)
    return {name.replace("/", "."): leaf for name, leaf in _safetensors(folder).items()}


def _msgpack(path: Path) -> dict[str, np.ndarray]:
    """Reads the file that save_pretrained of Flax models of transformers 4 writes."""
    try:
        tree = flax.serialization.msgpack_restore(path.read_bytes())
        state = traverse_util.flatten_dict(tree, sep=".")
    except Exception as error:  # msgpack, NumPy and flax raise different types
        raise EncoderError(
            f"{path}: cannot be read as msgpack ({type(error).__name__}: {error}); "
            "save the model again with save_pretrained"
        ) from error
    return {name: _float32(array) for name, array in state.items()}


def _safetensors(folder: Path) -> dict[str, np.ndarray]:
    state: dict[str, np.ndarray] = {}
    for path in _shards(folder):
        try:
            state |= load_file(path)
        except Exception as error:
            raise EncoderError(
                f"{path}: cannot be read as safetensors ({type(error).__name__}: {error}); "
                "fetch the file again"
            ) from error
    return {name: _float32(array) for name, array in state.items()}


def _shards(folder: Path) -> list[Path]:
    single, index = (folder / name for name in _SAFETENSORS)
    if index.exists():
        return [
            folder / name for name in sorted(set(_json(index).get("weight_map", {}).values()))
        ]
    if not single.exists():
        raise EncoderError(
            f"{folder}: has no model.safetensors and no flax_model.msgpack; save the model "
            "again with save_pretrained(..., safe_serialization=True)"
        )
    return [single]


def _float32(array: np.ndarray) -> np.ndarray:
    floating = jnp.issubdtype(array.dtype, jnp.floating)
    return array.astype(np.float32, copy=False) if floating else array
