"""jaxval: validates Flax dual encoders beside their training.

Nothing is imported here on purpose: the watching thread must be able to start, and
a trainer must be able to read signals, before JAX is imported.
"""

__version__ = "0.1.0"
