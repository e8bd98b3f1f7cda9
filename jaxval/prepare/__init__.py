"""Config -> Bench: everything is read, checked and tokenized before a device works."""
