"""The four apps: the help page of each, and its flags by topic."""

from __future__ import annotations

from dataclasses import replace

from absl.flags import DEFINE_integer, DEFINE_list, DEFINE_multi_string, DEFINE_string

from jaxval.cli import flags
from jaxval.cli.app import App, Flag

_RUN = Flag(
    "run",
    "A run file for run:depth=N, in TREC or MS MARCO format, plain or .gz. Can be repeated: the"
    " passages of all runs are pooled.",
    DEFINE_multi_string,
    default=[],
)
_SEED = Flag(
    "seed",
    "Seed of random:size=N.",
    DEFINE_integer,
    default=0,
    options={"lower_bound": 0, "upper_bound": 2**63 - 1},
)
_DENSE_STEP = Flag(
    "dense_step",
    "Step of the checkpoint in --checkpoint_dir that ranks the passages for dense:depth=N. It"
    " encodes the whole corpus once. If not set: there is no dense part.",
    DEFINE_integer,
)

VALIDATE = App(
    """Validates every checkpoint of a dense retriever, as its training commits it.

python -m jaxval.main --flagfile=val.flags
""",
    flags.VALIDATION,
)

SAMPLE = App(
    """Writes a sample of a corpus: the judged passages, and those that a strategy selects.

python -m jaxval.sample --dataset=dev:FOLDER --strategy=run:depth=100 --run=PATH
--output_dir=SAMPLE, and then jaxval.main with --dataset=dev:SAMPLE. The flags from
--checkpoint_dir on apply only to dense:depth=N. Other flags of jaxval.main are ignored.
""",
    {
        "What is sampled": (flags.DATASET,),
        "How": (
            Flag(
                "strategy",
                "Required. Which passages to keep in addition to the judged ones. run:depth=N"
                " keeps the first N of each query in each --run; bm25:depth=N the first N by"
                " BM25 (needs jaxval[sample]); dense:depth=N the first N by the checkpoint of"
                " --dense_step; random:size=N samples N unjudged passages; full keeps all. Join"
                " several by +.",
                DEFINE_string,
            ),
            _RUN,
            _SEED,
        ),
        "Output": (
            replace(
                flags.OUTPUT_DIR,
                help="Required. A new directory for the sample: corpus, queries, qrels and"
                " manifest.json.",
            ),
        ),
        "Checkpoint of dense:depth=N": (
            replace(
                flags.CHECKPOINT_DIR,
                help="The trainer's checkpoint directory. Required with dense:depth=N.",
            ),
            _DENSE_STEP,
        ),
        "Search of dense:depth=N": (flags.SIMILARITY, flags.INDEX_DTYPE),
        "Encoder": flags.ENCODER,
        "Texts": tuple(
            replace(
                flag,
                help="Directory for tokenized texts. Runs can share it. If not set: a temporary"
                " one.",
            )
            if flag.name == "token_dir"
            else flag
            for flag in flags.TEXTS
        ),
        "Devices": flags.COMPUTATION,
    },
    ignored=flags.ALL,
)

FIDELITY = App(
    """Compares samples of a corpus with the whole: do they rank checkpoints in the same order?

python -m jaxval.fidelity --flagfile=val.flags --strategy=random:size=1000
--strategy=run:depth=10 --run=bm25.trec --output_dir=OUT. Other flags of jaxval.main are
ignored.
""",
    {
        "Checkpoints": (
            flags.CHECKPOINT_DIR,
            Flag(
                "steps",
                "Comma-separated steps of the checkpoints to compare, e.g. 0,100,200. If not"
                " set: all committed checkpoints.",
                DEFINE_list,
                default=[],
            ),
        ),
        "Samples": (
            Flag(
                "strategy",
                "Required. A strategy of jaxval.sample: run:depth=N, bm25:depth=N,"
                " dense:depth=N, random:size=N, or several joined by +. run:depth=N@NAME,NAME"
                " pools only the runs of these names: their files' names up to the first dot."
                " Can be repeated. The whole corpus is always compared too.",
                DEFINE_multi_string,
                default=[],
            ),
            replace(
                _RUN,
                help="A run file for run:depth=N, in TREC or MS MARCO format, plain or .gz. Can"
                " be repeated: a strategy without @NAME pools all runs.",
            ),
            _DENSE_STEP,
            _SEED,
        ),
        "Output": (
            replace(
                flags.OUTPUT_DIR,
                help="Required. Directory for fidelity.json, fidelity.png and fidelity.svg.",
            ),
        ),
        "Validation sets and measures": flags.SETS_AND_MEASURES,
        "Encoder": flags.ENCODER,
        "Texts": flags.TEXTS,
        "Devices": flags.COMPUTATION,
    },
    ignored=flags.ALL,
)

CONVERT = App(
    """Writes a Hugging Face model as an Orbax checkpoint, to be validated as a baseline.

python -m jaxval.convert --model=FOLDER --checkpoint_dir=DIR --step=0
""",
    {
        "Flags": (
            Flag("model", "Required. A Hugging Face folder or hub name.", DEFINE_string),
            Flag(
                "checkpoint_dir",
                "Required. The checkpoint directory that the checkpoint is added to.",
                DEFINE_string,
            ),
            Flag(
                "step",
                "Training step that the checkpoint gets.",
                DEFINE_integer,
                default=0,
                options={"lower_bound": 0},
            ),
        )
    },
)
