"""Texts in BEIR form -> token ids as asyncval reads them, without special tokens.

    python tokenize_for_asyncval.py MODEL SOURCE TARGET MAX_LENGTH

What tokenize_passages.py of its examples does, but faster: a batch on all cores, and without
an import of transformers.
"""

import json
import sys
from pathlib import Path

from tokenizers import Tokenizer


def main(model: str, source: str, target: str, max_length: str) -> None:
    """Writes {"text_id", "text"} lines."""
    tokenizer = Tokenizer.from_file(f"{model}/tokenizer.json")
    tokenizer.no_padding()
    tokenizer.enable_truncation(int(max_length))
    with Path(source).open() as file:
        texts = [json.loads(line) for line in file]
    joined = [f"{text.get('title', '')} {text['text']}".strip() for text in texts]
    tokens = tokenizer.encode_batch(joined, add_special_tokens=False)
    pairs = zip(texts, tokens, strict=True)
    lines = [json.dumps({"text_id": text["_id"], "text": ids.ids}) for text, ids in pairs]
    Path(target).write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
