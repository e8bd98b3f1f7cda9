"""Validation sets on disk: readers of each format, the tokenizer and the token store."""
