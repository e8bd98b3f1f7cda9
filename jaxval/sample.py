"""Writes a sampled corpus: the judged passages, and those that a strategy chooses.

python -m jaxval.sample --dataset=dev:FOLDER --strategy=run:depth=100 --run=PATH
--output_dir=SAMPLE, and then --dataset=dev:SAMPLE for jaxval.main. The flags of jaxval.main's
that say how a checkpoint is validated are heard where dense:depth=N takes one's ranking.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags as absl_flags

from jaxval.cli import devices, flags, frame
from jaxval.errors import UserError
from jaxval.results.console import progress
from jaxval.sampling import strategies
from jaxval.sampling.write import write_sample

if TYPE_CHECKING:
    from jaxval.sampling.dense import Ranker

_STRATEGY = absl_flags.DEFINE_string(
    "strategy",
    "",
    "Required. What is kept beside the judged passages: run:depth=N, the first N of each query"
    " in each --run; bm25:depth=N, the same by BM25 (needs jaxval[sample]); dense:depth=N, the"
    " same by a checkpoint (--dense_step), which is validated once for it; random:size=N, so"
    " many of the others; full, all. Several are joined by +.",
)
_RUN = absl_flags.DEFINE_multi_string(
    "run",
    [],
    "A run file for run:depth=N, in the form of TREC or MS MARCO, plain or .gz. May be"
    " repeated; the passages of all are pooled.",
)
_SEED = absl_flags.DEFINE_integer(
    "seed", 0, "Decides what random:size=N draws.", lower_bound=0, upper_bound=2**63 - 1
)
_DENSE_STEP = absl_flags.DEFINE_integer(
    "dense_step", None, "Whose ranking dense:depth=N takes: a step of --checkpoint_dir."
)

_TOPICS: frame.Topics = {
    "What is sampled": (flags.SHARED["dataset"],),
    "How": (_STRATEGY, _RUN, _SEED),
    "Output, a new folder with corpus, queries, qrels and manifest.json": (
        flags.SHARED["output_dir"],
    ),
    "For dense:depth=N, which checkpoint ranks": (flags.SHARED["checkpoint_dir"], _DENSE_STEP),
    "For dense:depth=N, how": (flags.SHARED["similarity"], flags.SHARED["index_dtype"]),
    **{title: flags.TOPICS[title] for title in ("The encoder", "Texts", "Devices")},
}


def main() -> int:
    """Flags -> a sample."""
    if not _STRATEGY.value:
        raise UserError("--strategy is not set (see --help)")
    files, output_dir = flags.dataset(), flags.output_dir().resolve()
    strategy = strategies.parse(_STRATEGY.value)
    strategies.check_step([strategy], _DENSE_STEP.value)
    # Also without a dense part: bm25s has JAX open a device, and a trainer's is left alone.
    devices.apply(flags.devices() if strategy.dense else "cpu")
    runs = [Path(path).expanduser() for path in _RUN.value]
    ranker = _ranker(output_dir) if strategy.dense else None
    print(write_sample(files, strategy, runs, _SEED.value, output_dir, progress, ranker))
    return 0


def _ranker(output_dir: Path) -> Ranker:
    from jaxval.sampling import dense  # it imports JAX

    config = flags.config()
    token_dir = flags.SHARED["token_dir"].value  # without it, the tokens are temporary
    texts = replace(config.evaluation.texts, token_dir=Path(token_dir) if token_dir else None)
    return dense.open_ranker(
        replace(config.evaluation, texts=texts),
        config.watching.checkpoint_dir,
        _DENSE_STEP.value or 0,
        output_dir,
        lambda: devices.open_devices(flags.devices()),
        progress,
    )


if __name__ == "__main__":
    frame.run(main, _TOPICS, __doc__ or "")
