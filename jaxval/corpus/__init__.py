"""Readers of each format, the tokenizer and the token store."""
