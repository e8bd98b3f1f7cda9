"""The fast tokenizer of a model folder, on all cores, with a digest of what it does."""

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
    """Texts to token ids, with the special tokens around them.

    Attributes:
      backend: a `tokenizers.Tokenizer`.
      opening, closing: the special tokens that stand before and after a text.
      pad: the token id on padding; no encoder sees it unmasked.
      vocabulary: how many ids there are.
      digest: of everything that decides which ids a text gets.
    """

    backend: Any
    opening: tuple[int, ...]
    closing: tuple[int, ...]
    pad: int
    vocabulary: int
    digest: str

    def encode(self, texts: Sequence[str | tuple[int, ...]], max_len: int) -> list[list[int]]:
        """Token ids of each text, at most `max_len` of them, special tokens included.

        A text that is a tuple of token ids already only gets the special tokens.
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
                f"a text of token ids holds {max(ids)}, and the tokenizer has only"
                f" {self.vocabulary}: `tokenizer` is not the one that made them"
            )
        room = max_len - len(self.opening) - len(self.closing)
        return [*self.opening, *ids[:room], *self.closing]


def load(name: str) -> Tokenizer:
    """The tokenizer of a folder or of a name on the Hugging Face hub.

    Raises:
      EncoderError: there is none, or it has no fast form.
    """
    _check_folder(name)
    from transformers import AutoTokenizer  # slow to import: not before it is needed

    try:
        loaded = AutoTokenizer.from_pretrained(name)
    except Exception as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise EncoderError(
            f"`tokenizer={name}`: no tokenizer could be loaded ({first[:200]})."
            " Give a folder that holds tokenizer.json"
        ) from error
    backend = getattr(loaded, "backend_tokenizer", None)
    if backend is None:
        raise EncoderError(
            f"`tokenizer={name}`: it has no fast form."
            " Save it with tokenizer.json, by transformers' convert_slow_tokenizer"
        )
    return wrap(backend, pad=loaded.pad_token_id or 0)


def _check_folder(name: str) -> None:
    """Transformers makes an empty tokenizer of a folder that has none, without a word."""
    folder = Path(name).expanduser()
    if not folder.is_dir():
        if name.startswith(("/", ".", "~")):
            raise EncoderError(f"`tokenizer={name}`: no such folder")
        return  # a hub's name
    if not any((folder / file).is_file() for file in _FILES):
        raise EncoderError(
            f"`tokenizer={name}`: there is no tokenizer in it (none of {', '.join(_FILES)}):"
            " copy it beside config.json, or name its folder with `tokenizer`"
        )


def wrap(backend: Any, *, pad: int = 0) -> Tokenizer:
    """A Tokenizer over a `tokenizers.Tokenizer`."""
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
