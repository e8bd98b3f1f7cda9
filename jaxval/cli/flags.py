"""The flags of a validation, by topic, and the Config they make. Only apps import this."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from absl import flags

from jaxval.cli.frame import Topics
from jaxval.config import Config, Evaluation, Model, Output, Search, Texts, Watching
from jaxval.corpus import datasets
from jaxval.errors import UserError
from jaxval.records import DatasetFiles, ParamsPaths, PinLimit

_CHECK = flags.DEFINE_bool(
    "check",
    False,
    "Validate nothing: read everything, restore the newest checkpoint, encode 64 queries and"
    " passages, and print what a validation will do, how long it will take, and what looks"
    " wrong. Status 2 if it would fail or its values be worth nothing, else 0.",
)
_CHECKPOINT_DIR = flags.DEFINE_string(
    "checkpoint_dir",
    "",
    "Required. The trainer's directory of checkpoints, Orbax's or flax's. It is only read.",
)
_POLL_INTERVAL = flags.DEFINE_float(
    "poll_interval", 1.0, "Seconds between two looks at it.", lower_bound=0.01
)
_IDLE_TIMEOUT = flags.DEFINE_float(
    "idle_timeout",
    None,
    "End, with status 0, after so many seconds without a new checkpoint; with status 2 if the"
    " directory of checkpoints never came to be. None waits for ever."
    " A file `train_complete` in the checkpoint directory ends the run too, once all is"
    " validated.",
    lower_bound=0.0,
)
_MAX_VALIDATIONS = flags.DEFINE_integer(
    "max_validations", None, "End after so many checkpoints. None: no limit.", lower_bound=1
)
_PIN_DIR = flags.DEFINE_string(
    "pin_dir",
    "",
    "Where hard links keep checkpoints that the trainer deletes before they are validated;"
    " must be on the same file system. Empty: OUTPUT_DIR/pins.",
)
_MAX_PINS = flags.DEFINE_integer(
    "max_pins",
    None,
    "Checkpoints pinned at once at most; more wait unprotected. None: no limit.",
    lower_bound=0,
)
_MAX_PINNED_GIB = flags.DEFINE_float(
    "max_pinned_gib",
    None,
    "GiB pinned at once at most; more wait unprotected. None: no limit.",
    lower_bound=0.0,
)
_HOST_CHECKPOINTS = flags.DEFINE_integer(
    "host_checkpoints",
    2,
    "Restored checkpoints held in host memory at most: the next ones, and first of all those"
    " that could not be pinned.",
    lower_bound=1,
)
_ORDER = flags.DEFINE_enum(
    "order",
    "all",
    ["all", "newest", "latest"],
    "When several wait: all in step order; the newest first and the others when there is time;"
    " or only the latest, skipping those before it.",
)
_RETRY_FAILED = flags.DEFINE_bool(
    "retry_failed",
    False,
    "Try again what failed in earlier runs, if it is still there. What --confirm screened out"
    " counts as failed once --confirm is not given any more.",
)
_DATASET = flags.DEFINE_multi_string(
    "dataset",
    [],
    "Required. A validation set, as NAME:FOLDER (corpus.jsonl, queries.jsonl, qrels/test.tsv"
    " and their like) or NAME:corpus=PATH,queries=PATH,qrels=PATH, or both to replace some of a"
    " folder's. jaxval.main takes several: those that share a corpus have it encoded once.",
)
_MEASURES = flags.DEFINE_string(
    "measures",
    "RR@10,nDCG@10,R@100",
    "Measures, as ir_measures names them, or AvgRank: the mean rank of the relevant passages,"
    " of which lower is better.",
)
_RERANK = flags.DEFINE_string(
    "rerank",
    "",
    "A run file in the form of TREC or MS MARCO, plain or .gz. Only the passages that it ranks"
    " --depth or higher are encoded, and each is scored for those queries alone that it was"
    " ranked for. Empty: search the whole corpus.",
)
_DEPTH = flags.DEFINE_integer(
    "depth", 100, "Passages kept for each query.", lower_bound=1, upper_bound=100_000
)
_SIMILARITY = flags.DEFINE_enum(
    "similarity", "dot", ["dot", "cosine"], "How a query and a passage are compared."
)
_INDEX_DTYPE = flags.DEFINE_enum(
    "index_dtype",
    "float32",
    ["float32", "float16"],
    "What vectors are rounded to before they are compared. float16 halves what a GPU reads in"
    " the search; close scores may then change places.",
)
_MODEL = flags.DEFINE_string(
    "model",
    "",
    "A Hugging Face folder or hub name: config.json and the tokenizer, from which family,"
    " sizes, pooling and normalization follow. Its weights are not read.",
)
_ENCODER = flags.DEFINE_string(
    "encoder",
    "",
    "Instead of --model: package.module:factory, a function of your own that returns the"
    " encoder (see README).",
)
_TOKENIZER = flags.DEFINE_string(
    "tokenizer", "", "Folder or hub name of the tokenizer. Empty: that of --model."
)
_PARAMS_PATH = flags.DEFINE_string(
    "params_path",
    None,
    "The checkpoint's subtree that holds the encoder's parameters, or those of its two towers,"
    " e.g. default/ema_params. None: what fits, one subtree or one for each tower.",
)
_QUERY_PARAMS_PATH = flags.DEFINE_string(
    "query_params_path",
    None,
    "The subtree of the query tower, where each tower has its own and their names do not tell.",
)
_PASSAGE_PARAMS_PATH = flags.DEFINE_string(
    "passage_params_path", None, "The same of the passage tower."
)
_BASE_PARAMS = flags.DEFINE_string(
    "base_params",
    None,
    "Where the checkpoints hold LoRA adapters alone: what these change, an Orbax checkpoint or"
    " a Hugging Face folder. None: they hold whole parameters.",
)
_LORA_ALPHA = flags.DEFINE_float(
    "lora_alpha", None, "The alpha of training: adapters are scaled by alpha / rank."
)
_DTYPE = flags.DEFINE_enum(
    "dtype", "float32", ["float32", "bfloat16"], "What the encoder computes in."
)
_POOLING = flags.DEFINE_enum(
    "pooling", None, ["cls", "mean", "last"], "Overrides the pooling that --model says."
)
_NORMALIZE = flags.DEFINE_bool(
    "normalize", None, "Overrides whether --model's vectors get unit length."
)
_DIM = flags.DEFINE_integer(
    "dim",
    None,
    "Keep the first DIM components of --model's vectors (Matryoshka).",
    lower_bound=1,
)
_PASSAGE_TEMPLATE = flags.DEFINE_string(
    "passage_template", "{title} {text}", "How a passage's title and text are joined."
)
_PASSAGE_PREFIX = flags.DEFINE_string(
    "passage_prefix",
    None,
    "Put before each passage, e.g. 'passage: ' for E5. In a flag file, quotes keep the blank."
    " None: what --model says (sentence-transformers' prompt for documents), else nothing.",
)
_QUERY_PREFIX = flags.DEFINE_string(
    "query_prefix",
    None,
    "Put before each query, e.g. 'query: ' for E5. In a flag file, quotes keep the blank."
    " None: what --model says (sentence-transformers' prompt for queries), else nothing.",
)
_PASSAGE_MAX_LEN = flags.DEFINE_integer(
    "passage_max_len",
    None,
    "Tokens of a passage at most, special ones included. None: what --model says, else 256,"
    " within the model's limit.",
    lower_bound=3,
    upper_bound=32_768,
)
_QUERY_MAX_LEN = flags.DEFINE_integer(
    "query_max_len",
    None,
    "Tokens of a query at most, special ones included. None: what --model says, else 64,"
    " within the model's limit.",
    lower_bound=3,
    upper_bound=32_768,
)
_TOKEN_DIR = flags.DEFINE_string(
    "token_dir",
    "",
    "Where tokenized texts are kept; runs may share it. Empty: OUTPUT_DIR/tokens.",
)
_DEVICES = flags.DEFINE_string(
    "devices",
    "",
    "Where to run: cpu, tpu, gpu (all), gpu:1 or gpu:2,gpu:3. Other GPUs are not touched."
    " Empty: whatever JAX finds.",
)
_BATCH_TOKENS = flags.DEFINE_integer(
    "batch_tokens",
    None,
    "Tokens a batch a device, padding included. None: 1024 on CPU, else 65536.",
    lower_bound=1,
)
_OUTPUT_DIR = flags.DEFINE_string(
    "output_dir",
    "",
    "Required. A folder for all that is written: by jaxval.main ledger.sqlite, metrics.jsonl,"
    " tensorboard/ and runs/.",
)
_WRITE_RUN = flags.DEFINE_enum(
    "write_run",
    None,
    ["trec", "msmarco"],
    "Write the hits of every checkpoint to OUTPUT_DIR/runs in this form. None: do not.",
)
_SELECT_BY = flags.DEFINE_string(
    "select_by",
    None,
    "NAME:MEASURE that decides which checkpoint is best, e.g. dev:nDCG@10. None: the first"
    " --dataset (with --confirm the second) and the first of --measures.",
)
_CONFIRM = flags.DEFINE_enum(
    "confirm",
    None,
    ["best"],
    "Of two --dataset, a sample and then the whole, put every checkpoint to the sample, and to"
    " the whole only those that are not significantly worse on the sample than the best so"
    " far. None: every checkpoint is put to every set.",
)
_PATIENCE = flags.DEFINE_integer(
    "patience",
    None,
    "Tell the trainer to stop (jaxval.signals) after so many validations without a significant"
    " gain. None: never.",
    lower_bound=1,
)
_KEEP_BEST = flags.DEFINE_integer(
    "keep_best",
    0,
    "Export the encoder's parameters of so many best checkpoints to OUTPUT_DIR/best.",
    lower_bound=0,
)

TOPICS: Topics = {
    "Before the first run": (_CHECK,),
    "Which checkpoints, and until when": (
        _CHECKPOINT_DIR,
        _IDLE_TIMEOUT,
        _MAX_VALIDATIONS,
        _ORDER,
        _RETRY_FAILED,
        _POLL_INTERVAL,
        _PIN_DIR,
        _MAX_PINS,
        _MAX_PINNED_GIB,
        _HOST_CHECKPOINTS,
    ),
    "What they are put to": (
        _DATASET,
        _RERANK,
        _MEASURES,
        _DEPTH,
        _SIMILARITY,
        _INDEX_DTYPE,
    ),
    "The encoder": (
        _MODEL,
        _ENCODER,
        _TOKENIZER,
        _PARAMS_PATH,
        _QUERY_PARAMS_PATH,
        _PASSAGE_PARAMS_PATH,
        _BASE_PARAMS,
        _LORA_ALPHA,
        _DTYPE,
        _POOLING,
        _NORMALIZE,
        _DIM,
    ),
    "Texts": (
        _PASSAGE_TEMPLATE,
        _PASSAGE_PREFIX,
        _QUERY_PREFIX,
        _PASSAGE_MAX_LEN,
        _QUERY_MAX_LEN,
        _TOKEN_DIR,
    ),
    "Devices": (_DEVICES, _BATCH_TOKENS),
    "Output": (_OUTPUT_DIR, _WRITE_RUN),
    "Which is best, and what the trainer hears": (_SELECT_BY, _CONFIRM, _PATIENCE, _KEEP_BEST),
}

SHARED = {holder.name: holder for holders in TOPICS.values() for holder in holders}
"""By their names, for the apps that take some of them."""


def check() -> bool:
    """Whether --check is given."""
    return bool(_CHECK.value)


def devices() -> str:
    """--devices, which must be known before JAX is imported."""
    return _DEVICES.value


def dataset() -> DatasetFiles:
    """--dataset, where only one is of use.

    Raises:
      UserError: there is none, or several.
    """
    if len(_DATASET.value) > 1:
        raise UserError("--dataset is repeated: name one set here")
    (files,) = datasets.parse_all(_DATASET.value)
    return files


def config() -> Config:
    """The flags as a Config.

    Raises:
      UserError: a flag is missing, or two do not go together.
    """
    directory = output_dir()
    return Config(
        watching=Watching(
            checkpoint_dir=_absolute(_CHECKPOINT_DIR.value),
            pin_dir=_pin_dir(directory),
            poll_interval=_POLL_INTERVAL.value,
            idle_timeout=_IDLE_TIMEOUT.value,
            max_validations=_MAX_VALIDATIONS.value,
            order=_ORDER.value,
            pin_limit=PinLimit(_MAX_PINS.value, _bytes(_MAX_PINNED_GIB.value)),
            host_checkpoints=_HOST_CHECKPOINTS.value,
            retry_failed=_RETRY_FAILED.value,
        ),
        evaluation=Evaluation(
            datasets=datasets.parse_all(_DATASET.value),
            model=Model(
                folder=_MODEL.value or None,
                factory=_ENCODER.value or None,
                tokenizer=_TOKENIZER.value or None,
                params_paths=ParamsPaths(
                    _PARAMS_PATH.value, _QUERY_PARAMS_PATH.value, _PASSAGE_PARAMS_PATH.value
                ),
                base_params=_BASE_PARAMS.value,
                lora_alpha=_LORA_ALPHA.value,
                dtype=_DTYPE.value,
                pooling=_POOLING.value,
                normalize=_NORMALIZE.value,
                dim=_DIM.value,
            ),
            texts=Texts(
                passage_template=_unquote(_PASSAGE_TEMPLATE.value),
                passage_prefix=_prefix(_PASSAGE_PREFIX.value),
                query_prefix=_prefix(_QUERY_PREFIX.value),
                passage_max_len=_PASSAGE_MAX_LEN.value,
                query_max_len=_QUERY_MAX_LEN.value,
                token_dir=Path(_TOKEN_DIR.value or directory / "tokens"),
            ),
            search=Search(
                similarity=_SIMILARITY.value,
                index_dtype=_INDEX_DTYPE.value,
                depth=_DEPTH.value,
                measures=_split(_MEASURES.value),
                rerank=Path(_RERANK.value).expanduser() if _RERANK.value else None,
            ),
            batch_tokens=_BATCH_TOKENS.value,
            select_by=_SELECT_BY.value,
            confirm=_CONFIRM.value,
        ),
        output=Output(
            directory=directory,
            write_run=_WRITE_RUN.value,
            patience=_PATIENCE.value,
            keep_best=_KEEP_BEST.value,
        ),
    )


def output_dir() -> Path:
    """--output_dir; raises UserError if it is not set."""
    if not _OUTPUT_DIR.value:
        raise UserError("--output_dir is not set: name a directory for the results")
    return Path(_OUTPUT_DIR.value).expanduser().absolute()


def _pin_dir(output_dir: Path) -> Path:
    """A place of this run's own, also where several runs share --pin_dir."""
    if not _PIN_DIR.value:
        return output_dir / "pins"
    mine = hashlib.sha256(str(output_dir).encode()).hexdigest()[:12]
    return Path(_PIN_DIR.value).expanduser().absolute() / f"jaxval-{mine}"


def _absolute(directory: str) -> str:
    """As Orbax wants it; the URL of an object store is absolute already."""
    local = directory and "://" not in directory
    return str(Path(directory).expanduser().absolute()) if local else directory


def _bytes(gib: float | None) -> int | None:
    return None if gib is None else int(gib * 2**30)


def _unquote(text: str) -> str:
    """Without quotes around it: in a flag file only they keep blanks at the end."""
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    return text[1:-1] if quoted else text


def _prefix(text: str | None) -> str | None:
    return None if text is None else _unquote(text)


def _split(measures: str) -> tuple[str, ...]:
    """At commas, but not at those in a measure's own parentheses."""
    parts = re.split(r",(?![^(]*\))", measures)
    return tuple(part.strip() for part in parts if part.strip())
