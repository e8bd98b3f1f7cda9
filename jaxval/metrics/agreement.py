"""Does a part of the corpus rank checkpoints as the whole does? Tau, rho, regret, optimism.

Kendall's tau-b (Kendall, The treatment of ties in ranking problems, Biometrika 1945) is what
test collections are compared by since Voorhees (Variations in relevance judgments and the
measurement of retrieval effectiveness, SIGIR 1998). It counts every pair of checkpoints alike;
the regret asks what is lost if the part alone chooses. Intervals are percentiles of a
bootstrap over the queries (Efron and Tibshirani, An introduction to the bootstrap, 1993), both
sides on the same queries, and what is best is asked anew in each resample. So they say how the
same checkpoints would do on other queries, not how other checkpoints would.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

RESAMPLES = 1000
_SEED = 19450601
_AT_A_TIME = 1 << 21  # pairs of checkpoints, over all resamples
_LEVELS = (2.5, 97.5)


@dataclass(frozen=True)
class Estimate:
    """A value and its 95% interval; None where it is undefined.

    Tau and rho are undefined where all checkpoints score the same.
    """

    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Agreement:
    """How a part's values of one measure agree with the whole corpus's.

    Attributes:
      tau: Kendall's tau-b over the checkpoints, of the means over the queries.
      rho: Spearman's rank correlation of the same.
      best: the number of the checkpoint that the part calls best, of equals the first.
      same_best: whether none is better on the whole corpus.
      same_best_share: in what share of the resamples that is so.
      regret: what that checkpoint scores less, on the whole corpus, than the best there.
      optimism: part minus whole, the mean over the checkpoints.
    """

    tau: Estimate
    rho: Estimate
    best: int
    same_best: bool
    same_best_share: float
    regret: Estimate
    optimism: Estimate


def agree(whole: np.ndarray, part: np.ndarray) -> Agreement:
    """Compares values of one measure, both [checkpoints, queries], in one order.

    Raises:
      ValueError: the shapes differ, or there are fewer than two checkpoints or no queries.
    """
    if whole.shape != part.shape or whole.ndim != 2 or len(whole) < 2 or not whole.size:
        raise ValueError(f"values of {whole.shape} and {part.shape} cannot be compared")
    observed = _all(_tied(whole.mean(1)[None]), _tied(part.mean(1)[None]))
    weights = _weights(whole.shape[1])
    resampled = _all(_tied(weights @ whole.T), _tied(weights @ part.T))
    found = {name: _estimate(float(observed[name][0]), resampled[name]) for name in observed}
    return Agreement(
        **found,
        best=int(_tied(part.mean(1)).argmax()),
        same_best=found["regret"].value == 0,
        same_best_share=float((resampled["regret"] == 0).mean()),
    )


def kendall(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Tau-b of each row; both [rows, n], the result [rows], NaN where a row is constant."""
    rows = max(1, _AT_A_TIME // one.shape[1] ** 2)
    parts = range(0, len(one), rows)
    return np.concatenate(
        [_kendall(one[at : at + rows], other[at : at + rows]) for at in parts]
    )


def spearman(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Rho of each row, equals sharing their mean rank; shapes as for `kendall`."""
    # The mean rank of equals, from how many are below and how many above.
    ranks = [np.sign(x[:, :, None] - x[:, None, :]).sum(2) for x in (one, other)]
    return _cosine(*ranks)


def _kendall(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    signs = [np.sign(x[:, :, None] - x[:, None, :]) for x in (one, other)]
    return _cosine(*(each.reshape(len(one), -1) for each in signs))


def _cosine(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    norms = np.sqrt((one**2).sum(1) * (other**2).sum(1))
    dots = (one * other).sum(1)
    cosines: np.ndarray = np.divide(dots, norms, out=np.full(len(one), np.nan), where=norms > 0)
    return cosines


def _all(whole: np.ndarray, part: np.ndarray) -> dict[str, np.ndarray]:
    """The statistics of means [resamples, checkpoints], each [resamples]."""
    chosen = np.take_along_axis(whole, part.argmax(1)[:, None], 1)[:, 0]
    return {
        "tau": kendall(whole, part),
        "rho": spearman(whole, part),
        "regret": whole.max(1) - chosen,
        "optimism": (part - whole).mean(1),
    }


def _weights(queries: int) -> np.ndarray:
    """[resamples, queries]: which share of a resample each query is."""
    rng = np.random.default_rng(_SEED)
    return rng.multinomial(queries, np.full(queries, 1 / queries), RESAMPLES) / queries


def _estimate(value: float, resampled: np.ndarray) -> Estimate:
    defined = resampled[~np.isnan(resampled)]
    if np.isnan(value) or not defined.size:
        return Estimate(None, None, None)
    low, high = np.percentile(defined, _LEVELS)
    return Estimate(value, float(low), float(high))


def _tied(means: np.ndarray) -> np.ndarray:
    """Means that differ by rounding alone become equal."""
    return np.round(means, 12)
