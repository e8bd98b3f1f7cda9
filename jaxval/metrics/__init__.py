"""Measures, significance tests, agreement of rankings, and screening."""
