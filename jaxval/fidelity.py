"""Holds samples of a corpus against the whole: which one ranks checkpoints as it does?

python -m jaxval.fidelity --flagfile=val.flags --strategy=random:size=1000
--strategy=run:depth=10 --run=bm25.trec --output_dir=OUT
"""

from __future__ import annotations

from pathlib import Path

from absl import flags as absl_flags

from jaxval.cli import devices, flags, frame
from jaxval.errors import UserError
from jaxval.results.console import progress
from jaxval.sampling import figures

_STEPS = absl_flags.DEFINE_list(
    "steps", [], "Steps of the checkpoints to compare, e.g. 0,100,200. Empty: all committed."
)
_STRATEGY = absl_flags.DEFINE_multi_string(
    "strategy",
    [],
    "Required. A strategy as for jaxval.sample: run:depth=N, bm25:depth=N, dense:depth=N,"
    " random:size=N, or several joined by +. run:depth=N@NAME,NAME pools those runs alone,"
    " named as their files up to the first dot. May be repeated; the whole corpus is always"
    " there.",
)
_RUN = absl_flags.DEFINE_multi_string(
    "run",
    [],
    "A run file for run:depth=N, in the form of TREC or MS MARCO, plain or .gz. May be"
    " repeated; a strategy that names none pools all.",
)
_DENSE_STEP = absl_flags.DEFINE_integer(
    "dense_step",
    None,
    "Whose ranking dense:depth=N takes: a step of --checkpoint_dir. The corpus is encoded with"
    " it once more.",
)
_SEED = absl_flags.DEFINE_integer(
    "seed", 0, "Decides what random:size=N draws.", lower_bound=0, upper_bound=2**63 - 1
)

_TOPICS: frame.Topics = {
    "Which checkpoints": (flags.SHARED["checkpoint_dir"], _STEPS),
    "Which samples": (_STRATEGY, _RUN, _DENSE_STEP, _SEED),
    "Output, fidelity.json, .png and .svg": (flags.SHARED["output_dir"],),
    **{
        title: flags.TOPICS[title]
        for title in ("What they are put to", "The encoder", "Texts", "Devices")
    },
}


def main() -> int:
    """Flags -> a report, a table and a picture."""
    config = flags.config()
    figures.check()
    devices.apply(flags.devices(), config.output.directory / "compiled")

    from jaxval.sampling import compare, fidelity_report  # compare imports JAX

    comparison = compare.plan_comparison(
        config.evaluation,
        config.watching.checkpoint_dir,
        strategies=_STRATEGY.value,
        runs=[Path(path).expanduser() for path in _RUN.value],
        seed=_SEED.value,
        steps=_steps(),
        dense_step=_DENSE_STEP.value,
    )
    report = compare.compare(
        config.evaluation, comparison, lambda: devices.open_devices(flags.devices()), progress
    )
    fidelity_report.write(config.output.directory, report)
    fidelity_report.print_table(report)
    print(f"report       {config.output.directory / 'fidelity.json'}")
    print(f"picture      {config.output.directory / 'fidelity.png'}, .svg", flush=True)
    return 1 if report["left_out"] else 0


def _steps() -> set[int]:
    for step in _STEPS.value:
        if not step.strip().isdigit():
            raise UserError(f"--steps: {step!r} is no step: write numbers, as in 0,100,200")
    return set(map(int, _STEPS.value))


if __name__ == "__main__":
    frame.run(main, _TOPICS, __doc__ or "")
