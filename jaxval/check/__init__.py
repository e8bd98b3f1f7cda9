"""The `check` mode: inspects all inputs of a validation before the first run."""
