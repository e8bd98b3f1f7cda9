"""The fast tokenizer of a model folder, with a digest of its settings."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxval.errors import DataError, EncoderError

_FILES = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
)


@dataclass(frozen=True)
class Tokenizer:
    """Converts texts to token ids, and adds special tokens.

    Attributes:
      backend: A `tokenizers.Tokenizer`.
      opening: The special tokens before a text.
      closing: The special tokens after a text.
      pad: The token id of padding, which is always masked.
      vocabulary: Number of token ids.
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
    from transformers import AutoTokenizer  # slow to import: not before it is needed

    try:
        loaded = AutoTokenizer.from_pretrained(name)
    except Exception as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise EncoderError(
            f"`tokenizer={name}`: no tokenizer could be loaded ({first[:200]}):"
            " name a folder that contains tokenizer.json"
        ) from error
    backend = getattr(loaded, "backend_tokenizer", None)
    if backend is None:
        raise EncoderError(
            f"`tokenizer={name}`: it has no fast version: save it as tokenizer.json with"
            " transformers' convert_slow_tokenizer"
        )
    return wrap(backend, pad=loaded.pad_token_id or 0)


def _check_folder(name: str) -> None:
    """Raises EncoderError for a folder without a tokenizer.

    Transformers would silently make an empty tokenizer.
    """
    folder = Path(name).expanduser()
    if not folder.is_dir():
        if name.startswith(("/", ".", "~")):
            raise EncoderError(f"`tokenizer={name}`: there is no such folder: check the path")
        return  # a name on the hub
    if not any((folder / file).is_file() for file in _FILES):
        raise EncoderError(
            f"`tokenizer={name}`: there is no tokenizer in it (none of {', '.join(_FILES)}):"
            " copy its files there, or set `tokenizer` to its folder"
        )


def wrap(backend: Any, *, pad: int = 0) -> Tokenizer:
    """Returns a Tokenizer for a `tokenizers.Tokenizer`, without its padding and truncation.

    Args:
      backend: The `tokenizers.Tokenizer`.
      pad: The token id of padding.
    """
    backend.no_padding()
    backend.no_truncation()
    bare = backend.encode("a", add_special_tokens=False).ids
    whole = backend.encode("a").ids
    start = next((i for i in range(len(whole)) if whole[i : i + len(bare)] == bare), 0)
    return Tokenizer(
        backend=backend,
        opening=tuple(whole[:start]),
        closing=tuple(whole[start + len(bare) :]),
        pad=pad,
        vocabulary=backend.get_vocab_size(),
        digest=hashlib.sha256(backend.to_str().encode()).hexdigest(),
    )
