"""Tells a trainer which checkpoint is best, and when to stop.

    signals = Signals("runs/val")
    options = CheckpointManagerOptions(preservation_policy=signals.preservation_policy())
    ...
    if signals.should_stop():
        break

jaxval writes one file, OUTPUT_DIR/signals.json, and replaces it as a whole after each
validation. This module needs only the standard library.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from jaxval.atomic import replace_file

_LOG = logging.getLogger(__name__)
_NAME = "signals.json"
_FORMAT = "jaxval signals 2"

Folder = str | os.PathLike[str]


@dataclass(frozen=True)
class Best:
    """The best checkpoint so far.

    Attributes:
      step: Its training step.
      value: Its mean of the measure that decides.
      checkpoint: The path at which the trainer saved it.
    """

    step: int
    value: float
    checkpoint: str


@dataclass(frozen=True)
class State:
    """The content of signals.json. `State()` represents a missing file.

    Attributes:
      select_by: The measure that decides, as SET:MEASURE.
      best: The best checkpoint so far; None if none was validated.
      values: Step -> value of select_by, for all validated steps.
      failed: Steps that will not be validated: lost, corrupt, skipped or screened out.
      stop: Whether training should stop.
      reason: Why it should stop, for people; empty if it should not.
      lower_is_better: Whether lower values are better.
    """

    select_by: str = ""
    best: Best | None = None
    values: Mapping[int, float] = field(default_factory=dict)
    failed: tuple[int, ...] = ()
    stop: bool = False
    reason: str = ""
    lower_is_better: bool = False


def write(output_dir: Folder, state: State) -> None:
    """Replaces signals.json as a whole: a reader finds the old state or the new one.

    Args:
      output_dir: The `output_dir` of jaxval. It exists.
      state: What to write.

    Raises:
      OSError: The file cannot be written, for example on a full disk. The old file stays.
    """
    with replace_file(Path(output_dir, _NAME)) as partial:
        partial.write_text(json.dumps(_to_json(state), indent=1), encoding="utf-8")


def read(output_dir: Folder) -> State:
    """Reads signals.json.

    Args:
      output_dir: The `output_dir` of jaxval.

    Returns:
      The state; `State()` if there is no file.

    Raises:
      ValueError: The file is there, but `write` of this version did not write it.
    """
    path = Path(output_dir, _NAME)
    try:
        return _from_json(json.loads(path.read_bytes()))
    except FileNotFoundError:
        return State()
    except Exception as error:  # the file may hold anything
        raise ValueError(
            f"{path} is not a signals file that this jaxval can read ({error!r}): check that"
            f" {output_dir} is jaxval's `output_dir`, and that trainer and validation run the"
            " same version of jaxval; jaxval replaces the file after each validation"
        ) from error


class Signals:
    """Reads what jaxval tells the trainer.

    The methods are cheap enough to call at every step: the file is read only if it changed.
    If it cannot be read, they log a warning once, and return what they return without a file.
    The processes of a distributed training may read different states, because they read at
    different times: let one process call `should_stop` and broadcast the result.

    Args:
      output_dir: The `output_dir` of jaxval. It need not exist yet.
    """

    def __init__(self, output_dir: Folder):
        self._path = Path(output_dir, _NAME)
        self._read: tuple[tuple[int, ...], State] | None = None
        self._warned = False

    def best(self) -> Best | None:
        """Returns the best checkpoint so far, or None if none was validated."""
        return self._state().best

    def should_stop(self) -> bool:
        """Returns whether training should stop, because `patience` is exhausted."""
        return self._state().stop

    def preservation_policy(self, keep: int = 1, newest: int = 1) -> PreservationPolicy:
        """Returns a policy for Orbax's `CheckpointManagerOptions(preservation_policy=...)`.

        It replaces `max_to_keep`, which must not be set as well. Orbax's `best_fn` cannot do
        this: it gets the metrics that were saved with a checkpoint, and retrieval quality is
        known only later.

        Args:
          keep: Number of best checkpoints to keep, by the measure that decides.
          newest: Number of newest checkpoints to keep, so that training can be resumed.

        Raises:
          ValueError: `keep` is negative, or `newest` is less than 1.
        """
        if keep < 0 or newest < 1:
            raise ValueError(
                f"keep={keep} must be 0 or more, and newest={newest} must be 1 or more"
            )
        return PreservationPolicy(self, keep, newest)

    def _state(self) -> State:
        try:
            stat = self._path.stat()
            # Taken before reading: if the file is replaced meanwhile, the next call reads it.
            signature = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
            if self._read is None or self._read[0] != signature:
                self._read = signature, read(self._path.parent)
            return self._read[1]
        except FileNotFoundError:
            return State()
        except Exception as error:
            if not self._warned:
                self._warned = True
                _LOG.warning("training continues without signals from jaxval: %s", error)
            return State()


class _Saved(Protocol):
    @property
    def step(self) -> int: ...


@dataclass(frozen=True)
class PreservationPolicy:
    """Keeps the checkpoints that are not validated yet, the best ones and the newest ones.

    While jaxval does not run, no checkpoint is validated, so all are kept: make sure that the
    disk has room, or that jaxval is restarted.

    Attributes:
      signals: The validated steps and their values.
      keep: Number of best checkpoints to keep.
      newest: Number of newest checkpoints to keep.
    """

    signals: Signals
    keep: int
    newest: int

    def should_preserve(
        self, checkpoints: Sequence[_Saved], *, context: object = None
    ) -> list[bool]:
        """Implements Orbax's protocol.

        Args:
          checkpoints: The saved checkpoints, oldest first.
          context: Unused.

        Returns:
          For each checkpoint, whether to keep it.
        """
        state = self.signals._state()
        steps = [checkpoint.step for checkpoint in checkpoints]
        best = state.best and state.best.step  # comes first among equals
        sign = 1 if state.lower_is_better else -1
        ranked = sorted(
            (step for step in steps if step in state.values),
            key=lambda step: (step != best, sign * state.values[step], step),
        )
        kept = {*ranked[: self.keep], *steps[-self.newest :]}
        done = {*state.values, *state.failed}
        return [step in kept or step not in done for step in steps]


def _to_json(state: State) -> dict[str, Any]:
    """Returns the state as JSON holds it; NumPy's numbers become Python's."""
    return {
        "format": _FORMAT,
        "select_by": state.select_by,
        "best": state.best and asdict(state.best),
        "values": {int(step): float(value) for step, value in state.values.items()},
        "failed": [int(step) for step in state.failed],
        "stop": bool(state.stop),
        "reason": state.reason,
        "lower_is_better": bool(state.lower_is_better),
    }


def _from_json(content: Any) -> State:
    if content["format"] != _FORMAT:
        raise ValueError(f"format {content['format']!r}")
    best = content["best"]
    return State(
        select_by=str(content["select_by"]),
        best=None
        if best is None
        else Best(int(best["step"]), float(best["value"]), str(best["checkpoint"])),
        values={int(step): float(value) for step, value in content["values"].items()},
        failed=tuple(int(step) for step in content["failed"]),
        stop=content["stop"] is True,
        reason=str(content["reason"]),
        lower_is_better=content["lower_is_better"] is True,
    )
