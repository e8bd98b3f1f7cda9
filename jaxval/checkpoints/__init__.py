"""Watching, pinning, restoring and exporting Orbax checkpoints."""
