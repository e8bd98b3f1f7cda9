"""The factory that `--encoder=jaxval.demo.plugin:encoder` names."""

from jaxval.demo.model import Model
from jaxval.encoders.adapter import from_linen
from jaxval.records import Encoder


def encoder() -> Encoder:
    """Returns the trainer's model as an encoder: one tower for queries and passages."""
    return from_linen(Model())
