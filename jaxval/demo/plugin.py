"""How an encoder joins jaxval: a factory, named by `--encoder=jaxval.demo.plugin:encoder`."""

from jaxval.demo.model import Model
from jaxval.encoders.adapter import from_linen
from jaxval.records import Encoder


def encoder() -> Encoder:
    """The trainer's model; queries and passages share its one tower."""
    return from_linen(Model())
