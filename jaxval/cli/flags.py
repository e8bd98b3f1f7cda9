"""The flags of a validation, by topic.

A flag takes its default from the field of jaxval.config that it sets.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from absl.flags import (
    DEFINE_bool,
    DEFINE_enum,
    DEFINE_float,
    DEFINE_integer,
    DEFINE_multi_string,
    DEFINE_string,
)

from jaxval.cli.app import Flag, Topics, setting
from jaxval.config import Evaluation, Model, Output, Search, Texts, Watching
from jaxval.corpus import datasets
from jaxval.records import DatasetFiles, ParamsPaths, PinLimit


def _absolute(directory: str | None) -> str:
    """Returns an absolute path, as Orbax needs it. The URL of an object store stays."""
    if not directory or "://" in directory:
        return directory or ""
    return str(Path(directory).expanduser().absolute())


def _path(text: str | None) -> Path | None:
    return Path(text).expanduser() if text else None


def _text(text: str | None) -> str | None:
    """Returns None for an empty text."""
    return text or None


def _unquote(text: str | None) -> str | None:
    """Removes quotes around a text: in a flag file they keep a trailing space."""
    if text is None:
        return None
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    return text[1:-1] if quoted else text


def _bytes(gib: float | None) -> int | None:
    return None if gib is None else int(gib * 2**30)


def _measures(text: str) -> tuple[str, ...]:
    """Splits at commas, except at those within a measure's parentheses."""
    parts = re.split(r",(?![^(]*\))", text)
    return tuple(part.strip() for part in parts if part.strip())


def _datasets(specs: Sequence[str] | None) -> tuple[DatasetFiles, ...]:
    return datasets.parse_all(specs or ())


CHECK = Flag(
    "check",
    "Validate nothing. Read all data, restore the newest checkpoint, encode 64 queries and"
    " passages, and print what a validation would do, how long it would take, and what looks"
    " wrong. Exits with 2 if a validation would fail or its results would be meaningless, else"
    " with 0.",
    DEFINE_bool,
    default=False,
)
DEVICES = Flag(
    "devices",
    "Devices to use: cpu, tpu, gpu (all GPUs), gpu:1, or gpu:2,gpu:3. Other GPUs are not"
    " used. If not set: the devices that JAX selects.",
    default="",
)
CHECKPOINT_DIR = setting(
    Watching,
    "checkpoint_dir",
    DEFINE_string,
    "Required. The trainer's checkpoint directory, written by Orbax or by flax. A path, or the"
    " URL of an object store. jaxval only reads it.",
    convert=_absolute,
)
DATASET = setting(
    Evaluation,
    "datasets",
    DEFINE_multi_string,
    "Required. A validation set, as NAME:FOLDER (corpus.jsonl, queries.jsonl, qrels/test.tsv"
    " and similar names), as NAME:corpus=PATH,queries=PATH,qrels=PATH, or as both, to replace"
    " some files of the folder. Can be repeated for jaxval.main: the sets that share a corpus"
    " have it encoded once.",
    name="dataset",
    convert=_datasets,
)
SIMILARITY = setting(
    Search,
    "similarity",
    DEFINE_enum,
    "Similarity of a query's and a passage's vector.",
    enum_values=["dot", "cosine"],
)
INDEX_DTYPE = setting(
    Search,
    "index_dtype",
    DEFINE_enum,
    "Dtype that vectors are rounded to before they are compared. float16 halves the memory"
    " that a GPU reads in the search; passages with almost equal scores may change places.",
    enum_values=["float32", "float16"],
)
OUTPUT_DIR = setting(
    Output,
    "directory",
    DEFINE_string,
    "Required. Directory for all output: ledger.sqlite, metrics.jsonl, tensorboard/ and runs/.",
    name="output_dir",
)

CHECKPOINTS = (
    CHECKPOINT_DIR,
    setting(
        Watching,
        "idle_timeout",
        DEFINE_float,
        "Number of seconds without a new checkpoint after which the run ends: with status 0,"
        " or with status 2 if --checkpoint_dir never existed. If not set: wait forever. A file"
        " `train_complete` in --checkpoint_dir ends the run too, once all checkpoints are"
        " validated.",
        lower_bound=0.0,
    ),
    setting(
        Watching,
        "max_validations",
        DEFINE_integer,
        "Number of validated checkpoints after which the run ends. If not set: no limit.",
        lower_bound=1,
    ),
    setting(
        Watching,
        "order",
        DEFINE_enum,
        "Order in which waiting checkpoints are validated. all: by step. newest: the newest"
        " first, and the others when there is time. latest: the newest only; the ones before"
        " it are skipped.",
        enum_values=["all", "newest", "latest"],
    ),
    setting(
        Watching,
        "retry_failed",
        DEFINE_bool,
        "Validate again what failed in earlier runs, if it still exists. Checkpoints that"
        " --confirm screened out are included once --confirm is no longer set.",
    ),
    setting(
        Watching,
        "poll_interval",
        DEFINE_float,
        "How often to list --checkpoint_dir, in seconds.",
        lower_bound=0.01,
    ),
    setting(
        Watching,
        "pin_dir",
        DEFINE_string,
        "Directory for the hard links that keep a checkpoint readable after the trainer has"
        " deleted it. Must be on the same file system as --checkpoint_dir, and outside it."
        " If not set: OUTPUT_DIR/pins.",
    ),
    setting(
        PinLimit,
        "count",
        DEFINE_integer,
        "Maximum number of pinned checkpoints. Further ones are queued without a pin and may"
        " be deleted by the trainer. If not set: no limit.",
        name="max_pins",
        lower_bound=0,
    ),
    setting(
        PinLimit,
        "bytes",
        DEFINE_float,
        "Maximum size of all pinned checkpoints, in GiB. Further ones are queued without a pin"
        " and may be deleted by the trainer. If not set: no limit.",
        name="max_pinned_gib",
        convert=_bytes,
        lower_bound=0.0,
    ),
    setting(
        Watching,
        "host_checkpoints",
        DEFINE_integer,
        "Maximum number of restored checkpoints in host memory. Those that could not be pinned"
        " are restored first, then the next ones in the queue.",
        lower_bound=1,
    ),
)

SETS_AND_MEASURES = (
    DATASET,
    setting(
        Search,
        "rerank",
        DEFINE_string,
        "A run file in TREC or MS MARCO format, plain or .gz. Only the passages that it ranks"
        " --depth or higher are encoded, and each is scored only for the queries that it is"
        " ranked for. If not set: search the whole corpus.",
        convert=_path,
    ),
    setting(
        Search,
        "measures",
        DEFINE_string,
        "Comma-separated measures, by their names in ir_measures, or AvgRank, the mean rank of"
        " the relevant passages (lower is better).",
        convert=_measures,
        show=",".join,
    ),
    setting(
        Search,
        "depth",
        DEFINE_integer,
        "Number of passages kept for each query.",
        lower_bound=1,
        upper_bound=100_000,
    ),
    SIMILARITY,
    INDEX_DTYPE,
)

ENCODER = (
    setting(
        Model,
        "folder",
        DEFINE_string,
        "A Hugging Face folder or hub name. Its config.json and tokenizer determine family,"
        " sizes, pooling and normalization. Its weights are not read.",
        name="model",
        convert=_text,
    ),
    setting(
        Model,
        "factory",
        DEFINE_string,
        "A function that returns an encoder of your own, as package.module:function. Replaces"
        " --model, and needs --tokenizer.",
        name="encoder",
        convert=_text,
    ),
    setting(
        Model,
        "tokenizer",
        DEFINE_string,
        "Folder or hub name of the tokenizer. If not set: the tokenizer of --model.",
        convert=_text,
    ),
    setting(
        ParamsPaths,
        "tree",
        DEFINE_string,
        "Subtree of the checkpoint that holds the encoder's parameters, or those of both"
        " towers, e.g. default/ema_params. If not set: found by structure.",
        name="params_path",
    ),
    setting(
        ParamsPaths,
        "query",
        DEFINE_string,
        "Subtree that holds the query tower's parameters. Needed where each tower has its own"
        " subtree and their names do not show which is which. If not set: found by structure.",
        name="query_params_path",
    ),
    setting(
        ParamsPaths,
        "passage",
        DEFINE_string,
        "Subtree that holds the passage tower's parameters. Set together with"
        " --query_params_path. If not set: found by structure.",
        name="passage_params_path",
    ),
    setting(
        Model,
        "base_params",
        DEFINE_string,
        "Orbax checkpoint or Hugging Face folder with the base parameters, for checkpoints that"
        " hold only LoRA adapters. If not set: checkpoints hold all parameters.",
    ),
    setting(
        Model,
        "lora_alpha",
        DEFINE_float,
        "The alpha that the LoRA adapters were trained with: they are scaled by alpha / rank."
        " Set together with --base_params. If not set: no adapters.",
    ),
    setting(
        Model,
        "dtype",
        DEFINE_enum,
        "Dtype in which the encoder computes.",
        enum_values=["float32", "bfloat16"],
    ),
    setting(
        Model,
        "pooling",
        DEFINE_enum,
        "Overrides the pooling of --model. If not set: keep it.",
        enum_values=["cls", "mean", "last"],
    ),
    setting(
        Model,
        "normalize",
        DEFINE_bool,
        "Overrides whether the vectors of --model are scaled to unit length. If not set:"
        " keep it.",
    ),
    setting(
        Model,
        "dim",
        DEFINE_integer,
        "Number of leading components to keep of each vector of --model (Matryoshka"
        " embeddings). If not set: keep all.",
        lower_bound=1,
    ),
)

TEXTS = (
    setting(
        Texts,
        "passage_template",
        DEFINE_string,
        "How a passage's title and text are joined.",
        convert=_unquote,
    ),
    setting(
        Texts,
        "passage_prefix",
        DEFINE_string,
        "Text before each passage, e.g. 'passage: ' for E5. In a flag file, quotes keep the"
        " trailing space. If not set: the sentence-transformers prompt for documents in"
        " --model, or nothing.",
        convert=_unquote,
    ),
    setting(
        Texts,
        "query_prefix",
        DEFINE_string,
        "Text before each query, e.g. 'query: ' for E5. In a flag file, quotes keep the"
        " trailing space. If not set: the sentence-transformers prompt for queries in --model,"
        " or nothing.",
        convert=_unquote,
    ),
    setting(
        Texts,
        "passage_max_len",
        DEFINE_integer,
        "Maximum number of tokens of a passage, including special tokens. If not set: the value"
        " in --model, else 256, within the model's limit.",
        lower_bound=3,
        upper_bound=32_768,
    ),
    setting(
        Texts,
        "query_max_len",
        DEFINE_integer,
        "Maximum number of tokens of a query, including special tokens. If not set: the value"
        " in --model, else 64, within the model's limit.",
        lower_bound=3,
        upper_bound=32_768,
    ),
    setting(
        Texts,
        "token_dir",
        DEFINE_string,
        "Directory for tokenized texts. Runs can share it. If not set: OUTPUT_DIR/tokens.",
    ),
)

COMPUTATION = (
    DEVICES,
    setting(
        Evaluation,
        "batch_tokens",
        DEFINE_integer,
        "Maximum number of tokens per batch on each device, including padding. If not set: 1024"
        " on CPUs, 65536 on other devices.",
        lower_bound=1,
    ),
)

OUTPUT = (
    OUTPUT_DIR,
    setting(
        Output,
        "write_run",
        DEFINE_enum,
        "Write the hits of each checkpoint to OUTPUT_DIR/runs, in this format. If not set:"
        " write no runs.",
        enum_values=["trec", "msmarco"],
    ),
)

BEST = (
    setting(
        Evaluation,
        "select_by",
        DEFINE_string,
        "NAME:MEASURE that decides which checkpoint is best, e.g. dev:nDCG@10. If not set: the"
        " first --dataset (with --confirm the second) and the first of --measures.",
    ),
    setting(
        Evaluation,
        "confirm",
        DEFINE_enum,
        "Evaluate each checkpoint on the first of two --dataset, a sample, and on the second,"
        " the whole set, only if it is not significantly worse on the sample than the best so"
        " far. If not set: evaluate each checkpoint on every set.",
        enum_values=["best"],
    ),
    setting(
        Output,
        "patience",
        DEFINE_integer,
        "Number of validations without a significant gain after which the trainer is told to"
        " stop (jaxval.signals). If not set: never.",
        lower_bound=1,
    ),
    setting(
        Output,
        "keep_best",
        DEFINE_integer,
        "Number of best checkpoints whose encoder parameters are exported to OUTPUT_DIR/best.",
        lower_bound=0,
    ),
)

VALIDATION: Topics = {
    "Before the first run": (CHECK,),
    "Checkpoints, and when to end": CHECKPOINTS,
    "Validation sets and measures": SETS_AND_MEASURES,
    "Encoder": ENCODER,
    "Texts": TEXTS,
    "Devices": COMPUTATION,
    "Output": OUTPUT,
    "Best checkpoint, and signals to the trainer": BEST,
}
"""Title of a topic -> the flags of jaxval.main in it."""

ALL = tuple(flag for topic in VALIDATION.values() for flag in topic)
"""Each flag of jaxval.main."""
