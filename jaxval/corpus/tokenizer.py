"""The tokenizer of a model folder, with a digest of everything that decides its ids.

`tokenizer.json` is read as the tokenizers library reads it, which is what transformers 4 does.
For several classes, AutoTokenizer of transformers 5 replaces parts of that file, so it is used
only for folders without the file.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub

from jaxval.errors import DataError, EncoderError

_LOG = logging.getLogger(__name__)

_JSON = "tokenizer.json"
_SENTENCEPIECE = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
_FILES = (
    _JSON,
    "vocab.txt",
    "vocab.json",
    *_SENTENCEPIECE,
)

_FAMILIES_WITH_FLAGS = ("Llama", "CodeLlama", "Gemma", "Cohere")
"""Beginnings of the names of tokenizer classes for which `add_bos_token` and `add_eos_token`
also remove tokens."""

_SAMPLES = (
    "Hello World",
    "it's a naïve CAFÉ in 1999, e.g. co-operation!",
    "two  spaces\tand\nlines",
    "日本語 Ünïcode ﬁne",
)
"""Texts on which AutoTokenizer is compared with `tokenizer.json`."""


@dataclass(frozen=True)
class Tokenizer:
    """Converts texts to token ids, and adds special tokens.

    Attributes:
      backend: A `tokenizers.Tokenizer`.
      opening: The special tokens before a text.
      closing: The special tokens after a text.
      pad: The token id of padding, which is always masked.
      vocabulary: The highest token id, plus 1.
      digest: Digest of everything that decides which ids a text gets.
    """

    backend: Any
    opening: tuple[int, ...]
    closing: tuple[int, ...]
    pad: int
    vocabulary: int
    digest: str

    def encode(self, texts: Sequence[str | tuple[int, ...]], max_len: int) -> list[list[int]]:
        """Returns the token ids of each text. Strings are tokenized on all cores.

        Args:
          texts: The texts. Token ids are kept, and get the special tokens.
          max_len: Maximum number of tokens of a text, including special tokens.

        Raises:
          DataError: A token id is not in the vocabulary.
        """
        self.backend.enable_truncation(max_len)
        strings = iter(
            self.backend.encode_batch_fast([text for text in texts if isinstance(text, str)])
        )
        return [
            next(strings).ids if isinstance(text, str) else self._wrap(text, max_len)
            for text in texts
        ]

    def _wrap(self, ids: tuple[int, ...], max_len: int) -> list[int]:
        if ids and not 0 <= min(ids) <= max(ids) < self.vocabulary:
            raise DataError(
                f"a text of token ids contains {max(ids)}, but the tokenizer has only"
                f" {self.vocabulary} ids: set `tokenizer` to the one that made them"
            )
        room = max_len - len(self.opening) - len(self.closing)
        return [*self.opening, *ids[:room], *self.closing]


def load(name: str) -> Tokenizer:
    """Loads the tokenizer of a folder or of a name on the Hugging Face hub.

    Raises:
      EncoderError: There is none, or it has no fast version.
    """
    _check_folder(name)
    folder = _download(name)
    path = None if folder is None else folder / _JSON
    if path is None or not path.is_file():
        loaded = _auto_tokenizer(name)
        return wrap(loaded.backend_tokenizer, pad=loaded.pad_token_id or 0)
    config = _read_config(path.parent)
    backend = _from_file(name, path)
    _apply_flags(backend, config)
    tokenizer = wrap(backend, pad=_pad_id(backend, config))
    _report_difference(name, tokenizer)
    return tokenizer


def wrap(backend: Any, *, pad: int = 0) -> Tokenizer:
    """Returns a Tokenizer for a `tokenizers.Tokenizer`, without its padding and truncation.

    Args:
      backend: The `tokenizers.Tokenizer`.
      pad: The token id of padding.
    """
    backend.no_padding()
    backend.no_truncation()
    opening, closing = _special_tokens(backend)
    return Tokenizer(
        backend=backend,
        opening=opening,
        closing=closing,
        pad=pad,
        vocabulary=1 + max(backend.get_vocab().values(), default=-1),
        digest=hashlib.sha256(backend.to_str().encode()).hexdigest(),
    )


def _check_folder(name: str) -> None:
    """Raises EncoderError for a folder without a tokenizer.

    Transformers would silently make an empty tokenizer.
    """
    folder = Path(name).expanduser()
    if folder.is_file():
        raise EncoderError(
            f"`tokenizer={name}` is a file: name the folder that contains it, {folder.parent}"
        )
    if not folder.is_dir():
        if name.startswith(("/", ".", "~")):
            raise EncoderError(f"`tokenizer={name}`: there is no such folder: check the path")
        return  # a name on the hub
    if not any((folder / file).is_file() for file in _FILES):
        raise EncoderError(
            f"`tokenizer={name}`: there is no tokenizer in it (none of {', '.join(_FILES)}):"
            " copy its files there, or set `tokenizer` to its folder"
        )


def _download(name: str) -> Path | None:
    """Returns the folder, or the local copy of a hub model's; None if there is none."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    try:
        copy = huggingface_hub.snapshot_download(
            name, allow_patterns=[_JSON, "tokenizer_config.json"]
        )
    except Exception:  # AutoTokenizer's error is reported instead
        return None
    return Path(copy)


def _from_file(name: str, path: Path) -> Any:
    from tokenizers import Tokenizer as Backend

    try:
        return Backend.from_file(str(path))
    except Exception as error:  # tokenizers raises a bare Exception
        raise _not_loaded(name, error) from error


def _not_loaded(name: str, error: Exception) -> EncoderError:
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    remedy = "name a folder that contains tokenizer.json"
    if _needs_sentencepiece(name):
        remedy = "pip install sentencepiece protobuf, or save the tokenizer as tokenizer.json"
    return EncoderError(
        f"`tokenizer={name}`: no tokenizer could be loaded ({first[:200]}): {remedy}"
    )


def _needs_sentencepiece(name: str) -> bool:
    folder = Path(name).expanduser()
    installed = importlib.util.find_spec("sentencepiece") is not None
    has_json = (folder / _JSON).is_file()
    return not (installed or has_json) and any(
        (folder / file).is_file() for file in _SENTENCEPIECE
    )


def _auto_tokenizer(name: str) -> Any:
    """Returns transformers' fast tokenizer.

    Raises:
      EncoderError: There is none.
    """
    from transformers import AutoTokenizer  # slow to import: not before it is needed

    try:
        loaded = AutoTokenizer.from_pretrained(name)
    except Exception as error:
        raise _not_loaded(name, error) from error
    if getattr(loaded, "backend_tokenizer", None) is None:
        raise EncoderError(
            f"`tokenizer={name}`: it has no fast version: save it as tokenizer.json with"
            " transformers' convert_slow_tokenizer"
        )
    return loaded


def _read_config(folder: Path) -> dict[str, Any]:
    """Returns the content of tokenizer_config.json, or an empty dictionary."""
    try:
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def _named(config: dict[str, Any], key: str) -> str | None:
    """Returns a token of tokenizer_config.json, which is a string or an object."""
    token = config.get(key)
    return token.get("content") if isinstance(token, dict) else token


def _pad_id(backend: Any, config: dict[str, Any]) -> int:
    name = _named(config, "pad_token")
    pad = None if name is None else backend.token_to_id(name)
    if pad is not None:
        return int(pad)
    return int((backend.padding or {}).get("pad_id", 0))


def _apply_flags(backend: Any, config: dict[str, Any]) -> None:
    """Adds and removes special tokens according to `add_bos_token` and `add_eos_token`.

    transformers 4 rebuilds the post-processor of Llama's tokenizer and its relatives from
    these flags and ignores the one in tokenizer.json. The flags of other classes only add a
    token.
    """
    opening, closing = _special_tokens(backend)
    removes = str(config.get("tokenizer_class", "")).startswith(_FAMILIES_WITH_FLAGS)
    bos, eos = (_token_id(backend, config, kind) for kind in ("bos", "eos"))
    new_opening = _with_flag(opening, bos, config.get("add_bos_token"), removes, first=True)
    new_closing = _with_flag(closing, eos, config.get("add_eos_token"), removes, first=False)
    if (new_opening, new_closing) != (opening, closing):
        backend.post_processor = _template(backend, new_opening, new_closing)


def _token_id(backend: Any, config: dict[str, Any], kind: str) -> int | None:
    name = _named(config, f"{kind}_token")
    token: int | None = None if name is None else backend.token_to_id(name)
    return token


def _with_flag(
    tokens: tuple[int, ...], token: int | None, flag: Any, removes: bool, *, first: bool
) -> tuple[int, ...]:
    if token is None or not isinstance(flag, bool):
        return tokens
    if flag and token not in tokens:
        return (token, *tokens) if first else (*tokens, token)
    if not flag and removes:
        return tuple(other for other in tokens if other != token)
    return tokens


def _template(backend: Any, opening: tuple[int, ...], closing: tuple[int, ...]) -> Any:
    from tokenizers.processors import TemplateProcessing

    ids = {number: f"special{number}" for number in (*opening, *closing)}
    pieces = [*(ids[number] for number in opening), "$A", *(ids[number] for number in closing)]
    special = [
        {"id": name, "ids": [number], "tokens": [backend.id_to_token(number)]}
        for number, name in ids.items()
    ]
    return TemplateProcessing(single=pieces, special_tokens=special)


def _special_tokens(backend: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Returns the ids that the post-processor puts before and after a text."""
    from tokenizers import Tokenizer as Backend
    from tokenizers.models import WordLevel

    # The post-processor takes any encoding, so this text needs no token of the backend's.
    text = Backend(WordLevel({"text": 0}, unk_token="text")).encode("text")
    whole = backend.post_process(text, None, True)
    (place,) = [i for i, sequence in enumerate(whole.sequence_ids) if sequence == 0]
    return tuple(whole.ids[:place]), tuple(whole.ids[place + 1 :])


def _report_difference(name: str, tokenizer: Tokenizer) -> None:
    """Logs a text that AutoTokenizer tokenizes in another way, if there is one."""
    try:
        other = wrap(_auto_tokenizer(name).backend_tokenizer)
    except Exception as error:
        _LOG.debug("AutoTokenizer cannot load %s: %r", name, error)
        return
    for text in _SAMPLES:
        (ids,), (changed,) = (variant.encode([text], 64) for variant in (tokenizer, other))
        if ids != changed:
            _LOG.warning(
                "AutoTokenizer of the installed transformers gives other ids than the files of"
                " %s; using tokenizer.json and its flags, as transformers 4 does. For example,"
                " %r: %s instead of %s",
                *(name, text, ids, changed),
            )
            return
