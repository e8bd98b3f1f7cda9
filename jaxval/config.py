"""The settings of a run: frozen records with their defaults, checked when they are made.

Flags take their defaults from these records. Errors name a setting in backticks, by the name
of its flag.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from jaxval.errors import UserError
from jaxval.records import DatasetFiles, Encoder, ParamsPaths, PinLimit

_NO_LIMIT = PinLimit()
_FOUND_BY_STRUCTURE = ParamsPaths()


@dataclass(frozen=True)
class Watching:
    """Which checkpoints to validate, and when to end.

    Attributes:
      checkpoint_dir: The trainer's directory, which is only read. May be the URL of an
        object store.
      pin_dir: The directory of the hard links that keep a checkpoint readable after the
        trainer has deleted it.
      poll_interval: How often to list `checkpoint_dir`, in seconds.
      idle_timeout: Seconds without a new checkpoint after which the run ends. None waits
        forever.
      max_validations: Number of validated checkpoints after which the run ends. None sets
        no limit.
      order: `all` validates every checkpoint in step order. `newest` validates the newest
        first, and the others when there is time. `latest` validates the newest only.
      pin_limit: Maximum number and size of pinned checkpoints.
      host_checkpoints: Maximum number of restored checkpoints in host memory.
      retry_failed: Whether to validate again what failed in earlier runs.
    """

    checkpoint_dir: str
    pin_dir: Path
    poll_interval: float = 1.0
    idle_timeout: float | None = None
    max_validations: int | None = None
    order: str = "all"
    pin_limit: PinLimit = _NO_LIMIT
    host_checkpoints: int = 2
    retry_failed: bool = False

    def __post_init__(self) -> None:
        if not self.checkpoint_dir:
            raise UserError("`checkpoint_dir` is not set: name the trainer's directory")
        if "://" in self.checkpoint_dir:
            return
        directory = Path(self.checkpoint_dir)
        if (directory / "_CHECKPOINT_METADATA").exists():
            raise UserError(
                f"`checkpoint_dir={directory}` is itself a checkpoint: name the directory that"
                " contains it"
            )
        if directory.is_file():
            raise UserError(
                f"`checkpoint_dir={directory}` is a file: name the directory that contains the"
                " checkpoints"
            )
        if directory.resolve() in self.pin_dir.resolve().parents:
            raise UserError(
                f"`pin_dir={self.pin_dir}` is inside `checkpoint_dir`, which jaxval only"
                " reads: choose an `output_dir`, or a `pin_dir`, that is not inside it"
            )


@dataclass(frozen=True)
class Model:
    """The encoder, and where its parameters are in a checkpoint.

    Exactly one of `folder`, `factory` and `encoder` is set.

    Attributes:
      folder: A Hugging Face folder or hub name.
      factory: `package.module:name` of a function that returns the encoder.
      encoder: The encoder itself.
      tokenizer: The tokenizer's folder or hub name. None takes the one in `folder`.
      params_paths: The subtrees of the checkpoint that hold the parameters.
      dtype: The dtype of the computation, `float32` or `bfloat16`.
      pooling: Overrides the folder's pooling. None keeps it.
      normalize: Overrides whether the folder's vectors are normalized. None keeps it.
      dim: Number of components to keep of each vector. None keeps all.
      base_params: The checkpoint or model folder with the base parameters, if the
        checkpoints hold only LoRA adapters. None if they hold all parameters.
      lora_alpha: The alpha of the adapters, which are scaled by alpha / rank. None without
        adapters.
    """

    folder: str | None = None
    factory: str | None = None
    encoder: Encoder | None = None
    tokenizer: str | None = None
    params_paths: ParamsPaths = _FOUND_BY_STRUCTURE
    dtype: str = "float32"
    pooling: str | None = None
    normalize: bool | None = None
    dim: int | None = None
    base_params: str | None = None
    lora_alpha: float | None = None

    def __post_init__(self) -> None:
        own = self.factory or self.encoder
        if bool(self.folder) == bool(own) or (self.factory and self.encoder):
            raise UserError(
                "set one of `model=FOLDER` (a Hugging Face folder) and"
                " `encoder=package.module:factory` (a Flax module of your own)"
            )
        if own and not self.tokenizer:
            raise UserError(
                "`encoder` needs `tokenizer=FOLDER`: name the tokenizer of its training"
            )
        overrides = (self.pooling, self.normalize, self.dim)
        if own and any(value is not None for value in overrides):
            raise UserError(
                "`pooling`, `normalize` and `dim` apply to `model` only: an `encoder` does its"
                " own pooling"
            )
        self._check_params()

    def _check_params(self) -> None:
        paths = self.params_paths
        if (paths.query is None) != (paths.passage is None) or (paths.tree and paths.query):
            raise UserError(
                "set `query_params_path` and `passage_params_path` together, without"
                " `params_path`, where each tower has its own subtree"
            )
        if (self.base_params is None) != (self.lora_alpha is None):
            raise UserError(
                "set `base_params` and `lora_alpha` together: adapters are scaled by alpha /"
                " rank, and checkpoints do not hold alpha (tevax trains with 30, magix with 32;"
                " alpha = rank scales by 1)"
            )


@dataclass(frozen=True)
class Texts:
    """How texts become tokens.

    Attributes:
      passage_template: How a passage's title and text are joined.
      passage_prefix: Text before each passage. None takes the model folder's prompt.
      query_prefix: Text before each query. None takes the model folder's prompt.
      passage_max_len: Maximum number of tokens of a passage, including special tokens. None
        takes the model folder's, or 256.
      query_max_len: Maximum number of tokens of a query, including special tokens. None
        takes the model folder's, or 64.
      token_dir: The directory of tokenized texts. None keeps none.
    """

    passage_template: str = "{title} {text}"
    passage_prefix: str | None = None
    query_prefix: str | None = None
    passage_max_len: int | None = None
    query_max_len: int | None = None
    token_dir: Path | None = None


@dataclass(frozen=True)
class Search:
    """How passages are searched and the results measured.

    Attributes:
      similarity: `dot` or `cosine`.
      index_dtype: The dtype that vectors are rounded to before they are compared, `float32`
        or `float16`.
      depth: Number of passages kept for each query.
      measures: The measures, as ir_measures names them, or `AvgRank`.
      rerank: A run file. Only its passages are scored, each for its queries. None searches
        the whole corpus.
    """

    similarity: str = "dot"
    index_dtype: str = "float32"
    depth: int = 100
    measures: tuple[str, ...] = ("RR@10", "nDCG@10", "R@100")
    rerank: Path | None = None


@dataclass(frozen=True)
class Evaluation:
    """How each checkpoint is evaluated.

    Attributes:
      datasets: The validation sets.
      model: The encoder.
      texts: How texts become tokens.
      search: How passages are searched and the results measured.
      batch_tokens: Maximum number of tokens per batch on each device, including padding.
        None takes 1,024 on CPUs and 65,536 elsewhere.
      select_by: `NAME:MEASURE` that decides which checkpoint is best. None takes the first
        set and measure; with `confirm` the second set.
      confirm: `best` evaluates a checkpoint on the second set only if it may be the best on
        the first, which is a sample. None evaluates every checkpoint on every set.
    """

    datasets: tuple[DatasetFiles, ...]
    model: Model
    texts: Texts = Texts()
    search: Search = Search()
    batch_tokens: int | None = None
    select_by: str | None = None
    confirm: str | None = None

    def __post_init__(self) -> None:
        if self.confirm and self.search.rerank:
            raise UserError(
                "`confirm` and `rerank` cannot be combined, because the whole corpus would be"
                " re-ranked instead of searched: remove one of them"
            )
        if self.confirm and len(self.datasets) != 2:
            raise UserError(
                f"`confirm={self.confirm}` needs two `dataset`: first the sample (written by"
                " python -m jaxval.sample), then the whole set"
            )


@dataclass(frozen=True)
class Output:
    """What a run writes.

    Attributes:
      directory: The directory for all output.
      write_run: `trec` or `msmarco` writes run files in that format. None writes none.
      patience: Number of validations without a significant gain after which the trainer is
        told to stop. None sets no such limit.
      keep_best: Number of best checkpoints whose encoder parameters are exported.
    """

    directory: Path
    write_run: str | None = None
    patience: int | None = None
    keep_best: int = 0


@dataclass(frozen=True)
class Config:
    """The settings of a whole run.

    Attributes:
      watching: Which checkpoints to validate, and when to end.
      evaluation: How each checkpoint is evaluated.
      output: What the run writes.
    """

    watching: Watching
    evaluation: Evaluation
    output: Output
