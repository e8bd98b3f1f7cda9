"""Encoders: the adapter for any Flax module, and the families built in.

Nothing is imported here on purpose: a room above imports the one file it needs.
"""
