"""What a run is told, as plain frozen records, checked when they are made."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from jaxval.errors import UserError
from jaxval.records import DatasetFiles, ParamsPaths, PinLimit


@dataclass(frozen=True)
class Watching:
    """Which checkpoints, and until when.

    Attributes:
      checkpoint_dir: the trainer's directory; only read. May be an object store's URL.
      pin_dir: where hard links keep checkpoints readable.
      poll_interval: seconds between two listings.
      idle_timeout: seconds without a new checkpoint after which the run ends; None waits
        for ever.
      max_validations: checkpoints after which the run ends; None for no limit.
      order: `all` in step order; `newest` first, the others when there is time; `latest`
        alone, those before it are skipped.
      pin_limit: how much may be pinned at once.
      host_checkpoints: how many restored checkpoints are held in host memory.
      retry_failed: whether failures of earlier runs are taken up again.
    """

    checkpoint_dir: str
    pin_dir: Path
    poll_interval: float
    idle_timeout: float | None
    max_validations: int | None
    order: str
    pin_limit: PinLimit
    host_checkpoints: int
    retry_failed: bool

    def __post_init__(self) -> None:
        if not self.checkpoint_dir:
            raise UserError("`checkpoint_dir` is not set: name the trainer's directory")
        local = "://" not in self.checkpoint_dir
        if local and (Path(self.checkpoint_dir) / "_CHECKPOINT_METADATA").exists():
            raise UserError(
                f"`checkpoint_dir={self.checkpoint_dir}` is itself a checkpoint: name the"
                " directory it lies in"
            )
        if local and Path(self.checkpoint_dir).is_file():
            raise UserError(f"`checkpoint_dir={self.checkpoint_dir}` is a file, no directory")
        if local and Path(self.checkpoint_dir).resolve() in self.pin_dir.resolve().parents:
            raise UserError(
                f"`pin_dir={self.pin_dir}` lies in the trainer's directory, which is only read:"
                " choose one beside it"
            )


@dataclass(frozen=True)
class Model:
    """Which encoder.

    Attributes:
      folder: a Hugging Face folder or hub name; None with a factory.
      factory: `package.module:name` of a function that makes the encoder.
      tokenizer: folder or hub name of the tokenizer; None for that of the folder.
      params_paths: the checkpoint's subtrees to take, where several would fit.
      dtype: of the computation, `float32` or `bfloat16`.
      pooling, normalize, dim: override what the folder says; None keeps it.
      base_params: a checkpoint or model folder of which the checkpoints hold adapters.
      lora_alpha: adapters are scaled by alpha / rank.
    """

    folder: str | None
    factory: str | None
    tokenizer: str | None
    params_paths: ParamsPaths
    dtype: str
    pooling: str | None
    normalize: bool | None
    dim: int | None
    base_params: str | None = None
    lora_alpha: float | None = None

    def __post_init__(self) -> None:
        if bool(self.folder) == bool(self.factory):
            raise UserError(
                "set one of `model=FOLDER` (a Hugging Face folder) and"
                " `encoder=package.module:factory` (a Flax module of your own)"
            )
        if self.factory and not self.tokenizer:
            raise UserError("`encoder` needs `tokenizer=FOLDER`: which tokenizer made its ids?")
        overrides = (self.pooling, self.normalize, self.dim)
        if self.factory and any(value is not None for value in overrides):
            raise UserError(
                "`pooling`, `normalize` and `dim` belong to `model`: an `encoder` pools itself"
            )
        self._check_params()

    def _check_params(self) -> None:
        paths = self.params_paths
        if (paths.query is None) != (paths.passage is None) or (paths.tree and paths.query):
            raise UserError(
                "set `query_params_path` and `passage_params_path` both, and not `params_path`,"
                " where each tower has a subtree of its own"
            )
        if (self.base_params is None) != (self.lora_alpha is None):
            raise UserError(
                "`base_params` and `lora_alpha` belong together: adapters are scaled by alpha /"
                " rank, and checkpoints do not hold alpha (tevax trains with 30, magix with 32;"
                " the rank itself scales by 1)"
            )


@dataclass(frozen=True)
class Texts:
    """How texts become tokens. A prefix or length of None is what the model's folder says."""

    passage_template: str
    passage_prefix: str | None
    query_prefix: str | None
    passage_max_len: int | None
    query_max_len: int | None
    token_dir: Path


@dataclass(frozen=True)
class Search:
    """Attributes: similarity is `dot` or `cosine`, index_dtype one of search.DTYPES; depth
    is hits a query; rerank is a run whose passages alone are scored, each for its query."""

    similarity: str
    index_dtype: str
    depth: int
    measures: tuple[str, ...]
    rerank: Path | None


@dataclass(frozen=True)
class Config:
    """A whole run.

    Attributes:
      batch_tokens: tokens a batch a device, padding included; None for what suits the
        device.
      write_run: `trec` or `msmarco` to write run files; None for none.
      select_by: NAME:MEASURE that decides which checkpoint is best; None for the first, or
        with `confirm` for the second set.
      confirm: `best` to put a checkpoint to the second set only if it may be the best by the
        first, which is a sample; None to put every one to every set.
      patience: validations without a significant gain before the trainer is told to stop;
        None for never.
      keep_best: how many of the best checkpoints are exported.
    """

    watching: Watching
    datasets: tuple[DatasetFiles, ...]
    model: Model
    texts: Texts
    search: Search
    batch_tokens: int | None
    output_dir: Path
    write_run: str | None
    select_by: str | None
    confirm: str | None
    patience: int | None
    keep_best: int

    def __post_init__(self) -> None:
        if self.confirm and self.search.rerank:
            raise UserError(
                "`confirm` and `rerank` do not go together: the whole corpus would be"
                " re-ranked too, not searched; drop one of them"
            )
        if self.confirm and len(self.datasets) != 2:
            raise UserError(
                f"`confirm={self.confirm}` needs two `dataset`: first the sample (which"
                " python -m jaxval.sample writes), then the whole"
            )
