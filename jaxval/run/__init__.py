"""Validates checkpoint after checkpoint."""
