"""The errors of jaxval. A message says what happened, where, and what to do.

JaxvalError
├── UserError              wrong settings or data: ends a run with status 2
│   ├── DataError          a file of a validation set: names path and line
│   ├── EncoderError       the model folder or the `encoder` factory
│   └── MismatchError      a checkpoint's parameters do not fit the encoder
└── CheckpointError        one checkpoint: recorded, and the run continues
    ├── UnreadableError    the file system keeps failing: tried again in the next run
    ├── VanishedError      deleted or replaced while it was read
    ├── CorruptError       it exists and cannot be read
    └── NonFiniteError     its parameters contain NaN or infinity
"""


class JaxvalError(Exception):
    """Base class. An app prints the message without a traceback.

    Attributes:
      status: The exit status of an app that the error ends.
    """

    status = 1


class UserError(JaxvalError):
    """The settings or the data are wrong. The same call would fail again."""

    status = 2


class DataError(UserError):
    """A file of a validation set cannot be used."""


class EncoderError(UserError):
    """The encoder cannot be built from the settings."""


class MismatchError(UserError):
    """A checkpoint's parameters do not fit the encoder.

    Attributes:
      reason: What the ledger records.
    """

    reason = "mismatch"


class CheckpointError(JaxvalError):
    """A checkpoint cannot be validated. Others may be.

    Attributes:
      reason: What the ledger records.
    """

    reason = "failed"


class UnreadableError(CheckpointError):
    """The file system kept failing, which says nothing about the checkpoint."""

    reason = "unreadable"


class VanishedError(CheckpointError):
    """The checkpoint was deleted or replaced while it was read."""

    reason = "vanished"


class CorruptError(CheckpointError):
    """The checkpoint exists and cannot be read."""

    reason = "corrupt"


class NonFiniteError(CheckpointError):
    """The checkpoint's parameters contain NaN or infinity."""

    reason = "non-finite"
