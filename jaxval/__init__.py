"""jaxval validates Flax dense retrievers beside their training.

The public names are imported when they are first used. So `import jaxval` is fast, and a
trainer can read signals without importing jaxval's dependencies.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxval.api import load_params as load_params
    from jaxval.api import validate as validate
    from jaxval.encoders.adapter import FunctionEncoder as FunctionEncoder
    from jaxval.encoders.adapter import from_linen as from_linen
    from jaxval.encoders.adapter import from_nnx as from_nnx
    from jaxval.errors import JaxvalError as JaxvalError
    from jaxval.errors import UserError as UserError
    from jaxval.records import Encoder as Encoder
    from jaxval.records import Ranked as Ranked
    from jaxval.records import Tracker as Tracker
    from jaxval.results.result import Result as Result
    from jaxval.results.saved_run import SavedRun as SavedRun
    from jaxval.results.saved_run import open_run as open_run
    from jaxval.signals import Signals as Signals

__version__ = "0.1.0"

_HOMES = {
    "Encoder": "jaxval.records",
    "FunctionEncoder": "jaxval.encoders.adapter",
    "JaxvalError": "jaxval.errors",
    "Result": "jaxval.results.result",
    "Ranked": "jaxval.records",
    "SavedRun": "jaxval.results.saved_run",
    "Signals": "jaxval.signals",
    "Tracker": "jaxval.records",
    "UserError": "jaxval.errors",
    "from_linen": "jaxval.encoders.adapter",
    "from_nnx": "jaxval.encoders.adapter",
    "load_params": "jaxval.api",
    "open_run": "jaxval.results.saved_run",
    "validate": "jaxval.api",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'jaxval' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
