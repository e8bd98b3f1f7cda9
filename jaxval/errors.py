"""What can go wrong, as one short tree. Each message says what, where and the remedy.

JaxvalError
├── UserError              the settings or the data: ends the run with status 2
│   ├── DataError          a file: names path and line
│   ├── EncoderError       the model folder or the `encoder` factory
│   └── MismatchError      a checkpoint whose tree does not fit the encoder
└── CheckpointError        one checkpoint: recorded, and the loop goes on
    ├── UnreadableError    the file system keeps failing: tried again at the next start
    ├── VanishedError      it was deleted or replaced while it was read
    ├── CorruptError       it is there and cannot be read as it should
    └── NonFiniteError     its parameters hold NaN or infinity
"""


class JaxvalError(Exception):
    """The root. Its text is complete: an app prints it as it is, without a traceback."""

    status = 1


class UserError(JaxvalError):
    """The user's settings or data are at fault; the same call will fail again."""

    status = 2


class DataError(UserError):
    """A file of a validation set cannot be used."""


class EncoderError(UserError):
    """The encoder cannot be built from what the flags name."""


class MismatchError(UserError):
    """A checkpoint's tree does not fit the encoder's."""

    reason = "mismatch"


class CheckpointError(JaxvalError):
    """One checkpoint cannot be validated; the next may."""

    reason = "failed"


class UnreadableError(CheckpointError):
    """The file system kept failing; nothing is known of the checkpoint itself."""

    reason = "unreadable"


class VanishedError(CheckpointError):
    """The checkpoint was deleted or replaced while it was read."""

    reason = "vanished"


class CorruptError(CheckpointError):
    """The checkpoint is there and cannot be read as it should."""

    reason = "corrupt"


class NonFiniteError(CheckpointError):
    """The checkpoint's parameters hold NaN or infinity."""

    reason = "non-finite"
