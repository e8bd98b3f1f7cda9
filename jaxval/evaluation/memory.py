"""Puts parameters on the devices, and halves the batch where their memory is too small."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

import jax

from jaxval.checkpoints.restore import Restored
from jaxval.errors import UserError
from jaxval.evaluation.encode import place
from jaxval.evaluation.plan import EvalPlan, TowerParams

_LOG = logging.getLogger(__name__)
Result = TypeVar("Result")


def place_towers(restored: Restored, plan: EvalPlan) -> TowerParams:
    """Copies restored parameters to the plan's devices; tied towers share one copy.

    Raises:
      UserError: A device has too little memory for them.
    """
    try:
        placed = place(restored.params, plan.devices)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise UserError(
            "the parameters do not fit into the device's memory: choose another device with"
            " `devices`, or set `dtype=bfloat16`"
        ) from error
    return TowerParams(**placed) if restored.untied else TowerParams(placed, placed)


def within_memory(plan: EvalPlan, work: Callable[[], Result]) -> Result:
    """Calls `work`, and calls it again with half the batch while the device is out of memory.

    Args:
      plan: The towers, whose batches are halved for the rest of the run.
      work: Encodes with the plan's towers.

    Returns:
      What `work` returns.

    Raises:
      UserError: The smallest batch does not fit either.
    """
    while True:
        try:
            return work()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            _halve(plan, error)


def _halve(plan: EvalPlan, error: Exception) -> None:
    tokens = {tower.halve() for tower in (plan.query_tower, plan.passage_tower)}
    if tokens == {None}:
        raise UserError(
            "the device has too little memory for the smallest batch: choose another device"
            " with `devices`, or set `dtype=bfloat16`"
        ) from error
    _LOG.warning(
        "the device is out of memory: from now on %d tokens per batch (`batch_tokens`)",
        max(filter(None, tokens)),
    )
