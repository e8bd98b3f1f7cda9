"""What a trainer hears from jaxval: the best step, and whether to stop. Standard library alone.

    signals = Signals("runs/val")
    options = CheckpointManagerOptions(preservation_policy=signals.preservation_policy())
    ...
    if signals.should_stop():
        break

jaxval tells it in one file, OUTPUT_DIR/signals.json, which is replaced as a whole.
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
    """The best checkpoint so far: its step, its value, and the path it was saved at."""

    step: int
    value: float
    checkpoint: str


@dataclass(frozen=True)
class State:
    """What jaxval knows. `State()` is no news.

    Attributes:
      select_by: the measure that decides, as SET:MEASURE.
      best: the best so far, if anything was validated.
      values: step -> its value of select_by, of every validated step.
      failed: steps that will never be validated: lost, corrupt, skipped or screened
        out.
      stop: whether training should stop.
      reason: why, for people.
      lower_is_better: whether the least of the values is the best.
    """

    select_by: str = ""
    best: Best | None = None
    values: Mapping[int, float] = field(default_factory=dict)
    failed: tuple[int, ...] = ()
    stop: bool = False
    reason: str = ""
    lower_is_better: bool = False


def write(output_dir: Folder, state: State) -> None:
    """Replaces the file; a reader sees the old one or the new one, whole.

    Raises:
      OSError: it could not be written (a full disk); the old one stands as it was.
    """
    with replace_file(Path(output_dir, _NAME)) as partial:
        partial.write_text(json.dumps(_told(state), indent=1), encoding="utf-8")


def read(output_dir: Folder) -> State:
    """What the file says; no news if there is none.

    Raises:
      ValueError: it is there and is not what `write` writes.
    """
    path = Path(output_dir, _NAME)
    try:
        return _heard(json.loads(path.read_bytes()))
    except FileNotFoundError:
        return State()
    except Exception as e:  # whatever it holds instead
        raise ValueError(
            f"{path} is not a file of signals that this jaxval can read ({e!r}): check that"
            f" {output_dir} is jaxval's `output_dir`, and that both sides run the same version"
            " of jaxval; jaxval writes the file anew after each validation"
        ) from e


class Signals:
    """The trainer's ear. It may be asked at every step: the file is read when it changed.

    It never breaks a training: what cannot be read is logged, once, and is no news. Where
    a training has several processes, they may ask at different moments and hear different
    things, so let one of them ask `should_stop` and broadcast the answer.

    Args:
      output_dir: jaxval's `output_dir`. It need not exist yet.
    """

    def __init__(self, output_dir: Folder):
        self._path = Path(output_dir, _NAME)
        self._seen: tuple[tuple[int, ...], State] | None = None
        self._complained = False

    def best(self) -> Best | None:
        """The best checkpoint so far, or None if none was validated."""
        return self._state().best

    def should_stop(self) -> bool:
        """Whether `patience` has run out."""
        return self._state().stop

    def preservation_policy(self, keep: int = 1, newest: int = 1) -> PreservationPolicy:
        """For Orbax's `CheckpointManagerOptions(preservation_policy=...)`.

        It takes the place of `max_to_keep`, which must not be given beside it. There is no
        `best_fn` here: Orbax hands that the metrics that were saved with a checkpoint, and
        the retrieval quality is known only later.

        Args:
          keep: how many of the best by retrieval quality to keep.
          newest: how many of the newest to keep, so that training can be resumed.
        """
        if keep < 0 or newest < 1:
            raise ValueError(f"keep={keep} must be 0 or more, newest={newest} 1 or more")
        return PreservationPolicy(self, keep, newest)

    def _state(self) -> State:
        try:
            stat = self._path.stat()
            # Before it is read: if it is replaced in between, the next call sees a change.
            signature = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
            if self._seen is None or self._seen[0] != signature:
                self._seen = signature, read(self._path.parent)
            return self._seen[1]
        except FileNotFoundError:
            return State()
        except Exception as error:
            if not self._complained:
                self._complained = True
                _LOG.warning("training goes on without news from jaxval: %s", error)
            return State()


class _Saved(Protocol):
    @property
    def step(self) -> int: ...


@dataclass(frozen=True)
class PreservationPolicy:
    """Keeps what jaxval has still to validate, the best, and the newest.

    While jaxval does not run, nothing is validated and so everything is kept: see that the
    disk has room, or that jaxval is started again.
    """

    signals: Signals
    keep: int
    newest: int

    def should_preserve(
        self, checkpoints: Sequence[_Saved], *, context: object = None
    ) -> list[bool]:
        """Orbax's protocol: checkpoints, oldest first -> whether each is to be kept."""
        state = self.signals._state()
        steps = [checkpoint.step for checkpoint in checkpoints]
        first = state.best and state.best.step  # so that what best() names is there
        sign = 1 if state.lower_is_better else -1
        ranked = sorted(
            (step for step in steps if step in state.values),
            key=lambda step: (step != first, sign * state.values[step], step),
        )
        wanted = {*ranked[: self.keep], *steps[-self.newest :]}
        settled = {*state.values, *state.failed}
        return [step in wanted or step not in settled for step in steps]


def _told(state: State) -> dict[str, Any]:
    """As JSON holds it; numpy's numbers become Python's."""
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


def _heard(told: Any) -> State:
    if told["format"] != _FORMAT:
        raise ValueError(f"format {told['format']!r}")
    best = told["best"]
    return State(
        select_by=str(told["select_by"]),
        best=None
        if best is None
        else Best(int(best["step"]), float(best["value"]), str(best["checkpoint"])),
        values={int(step): float(value) for step, value in told["values"].items()},
        failed=tuple(int(step) for step in told["failed"]),
        stop=told["stop"] is True,
        reason=str(told["reason"]),
        lower_is_better=told["lower_is_better"] is True,
    )
