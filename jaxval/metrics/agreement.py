"""How well a part of a corpus ranks checkpoints, compared with the whole corpus.

Kendall's tau-b (Kendall, The treatment of ties in ranking problems, Biometrika 1945) is the
usual statistic for comparing test collections since Voorhees (Variations in relevance
judgments and the measurement of retrieval effectiveness, SIGIR 1998). It weights all pairs of
checkpoints equally. The regret is the loss if only the part decides which checkpoint is best.

Intervals are percentiles of a bootstrap over the queries (Efron and Tibshirani, An
introduction to the bootstrap, 1993). Each resample takes the same queries for part and whole,
and chooses the best checkpoint again. So the intervals apply to the same checkpoints on other
queries, not to other checkpoints.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

RESAMPLES = 1000
_SEED = 19450601
_BATCH_PAIRS = 1 << 21  # pairs of checkpoints per batch of resamples
_LEVELS = (2.5, 97.5)


@dataclass(frozen=True)
class Estimate:
    """A value with its 95% interval. All are None if the value is undefined.

    Tau and rho are undefined if all checkpoints score the same.

    Attributes:
      value: The value on all queries.
      low: Lower end of the interval.
      high: Upper end of the interval.
    """

    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Agreement:
    """How well the values on a part of a corpus agree with those on the whole, for one measure.

    Attributes:
      tau: Kendall's tau-b of the checkpoints' means over the queries.
      rho: Spearman's rank correlation of these means.
      best: Index of the checkpoint that is best on the part, the first of equals.
      same_best: Whether that checkpoint is best on the whole corpus too.
      same_best_share: Share of the resamples in which the part's best is the whole's.
      regret: The best mean on the whole corpus, minus the mean there of the part's best.
      optimism: Mean on the part minus mean on the whole, averaged over the checkpoints.
    """

    tau: Estimate
    rho: Estimate
    best: int
    same_best: bool
    same_best_share: float
    regret: Estimate
    optimism: Estimate


def agree(whole: np.ndarray, part: np.ndarray) -> Agreement:
    """Compares the values of one measure on a part of a corpus with those on the whole.

    Args:
      whole: [checkpoints, queries] float64, on the whole corpus.
      part: [checkpoints, queries] float64, on the part; checkpoints and queries in the same
        order.

    Raises:
      ValueError: The shapes differ, or there are fewer than two checkpoints or no queries.
    """
    if whole.shape != part.shape or whole.ndim != 2 or len(whole) < 2 or not whole.size:
        raise ValueError(f"values of {whole.shape} and {part.shape} cannot be compared")
    observed = _statistics(_round(whole.mean(1)[None]), _round(part.mean(1)[None]))
    weights = _weights(whole.shape[1])
    resampled = _statistics(_round(weights @ whole.T), _round(weights @ part.T))
    estimates = {
        name: _estimate(float(observed[name][0]), resampled[name]) for name in observed
    }
    return Agreement(
        **estimates,
        best=int(_round(part.mean(1)).argmax()),
        same_best=estimates["regret"].value == 0,
        same_best_share=float((resampled["regret"] == 0).mean()),
    )


def kendall(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Returns Kendall's tau-b of each pair of rows.

    Args:
      first: [rows, n] float64.
      second: [rows, n] float64.

    Returns:
      [rows] float64; NaN for a row that is constant in `first` or `second`.
    """
    rows = max(1, _BATCH_PAIRS // first.shape[1] ** 2)
    starts = range(0, len(first), rows)
    return np.concatenate(
        [
            _kendall(first[start : start + rows], second[start : start + rows])
            for start in starts
        ]
    )


def spearman(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Returns Spearman's rho of each pair of rows; equal values share their mean rank.

    Args:
      first: [rows, n] float64.
      second: [rows, n] float64.

    Returns:
      [rows] float64; NaN for a row that is constant in `first` or `second`.
    """
    # Values below minus values above: a linear function of the rank.
    ranks = [np.sign(x[:, :, None] - x[:, None, :]).sum(2) for x in (first, second)]
    return _cosine(*ranks)


def _kendall(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    signs = [np.sign(x[:, :, None] - x[:, None, :]) for x in (first, second)]
    return _cosine(*(sign.reshape(len(first), -1) for sign in signs))


def _cosine(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Returns the cosine of each pair of rows; NaN if one of them is zero."""
    norms = np.sqrt((first**2).sum(1) * (second**2).sum(1))
    dots = (first * second).sum(1)
    cosines: np.ndarray = np.divide(
        dots, norms, out=np.full(len(first), np.nan), where=norms > 0
    )
    return cosines


def _statistics(whole: np.ndarray, part: np.ndarray) -> dict[str, np.ndarray]:
    """Returns statistics of means [resamples, checkpoints], [resamples] each."""
    chosen = np.take_along_axis(whole, part.argmax(1)[:, None], 1)[:, 0]
    return {
        "tau": kendall(whole, part),
        "rho": spearman(whole, part),
        "regret": whole.max(1) - chosen,
        "optimism": (part - whole).mean(1),
    }


def _weights(queries: int) -> np.ndarray:
    """Returns each query's share of a resample, [resamples, queries] float64."""
    rng = np.random.default_rng(_SEED)
    return rng.multinomial(queries, np.full(queries, 1 / queries), RESAMPLES) / queries


def _estimate(value: float, resampled: np.ndarray) -> Estimate:
    defined = resampled[~np.isnan(resampled)]
    if np.isnan(value) or not defined.size:
        return Estimate(None, None, None)
    low, high = np.percentile(defined, _LEVELS)
    return Estimate(value, float(low), float(high))


def _round(means: np.ndarray) -> np.ndarray:
    """Makes means equal that differ only by rounding errors."""
    return np.round(means, 12)
