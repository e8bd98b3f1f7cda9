"""Tokenizes texts in BEIR format for asyncval, without special tokens.

    python tokenize_for_asyncval.py MODEL SOURCE TARGET MAX_LENGTH

It does the same as tokenize_passages.py in asyncval's examples, but faster, because it uses all
cores and does not import transformers.
"""

import json
import sys
from pathlib import Path

from tokenizers import Tokenizer


def main(model: str, source: str, target: str, max_length: str) -> None:
    """Writes a line of JSON for each text, with the keys `text_id` and `text`."""
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
