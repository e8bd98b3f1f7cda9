"""Config -> Bench: everything is read, checked and tokenized before a device works."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jax
import jax.numpy as jnp
import numpy as np

from jaxval import measures as measuring
from jaxval.checkpoints import restore
from jaxval.checkpoints.lora import Base
from jaxval.checkpoints.restore import Restored
from jaxval.checkpoints.trees import flatten, show
from jaxval.config import Config, Model, Search
from jaxval.confirm import Screening
from jaxval.corpus import readers, samples, tokenizer, tokens
from jaxval.corpus.datasets import QuerySet, load_queries
from jaxval.corpus.runs import Candidates, read_run
from jaxval.corpus.tokenizer import Tokenizer
from jaxval.corpus.tokens import Recipe, TokenStore
from jaxval.encode import Tower, default_batch_tokens
from jaxval.encoders import adapter, folder
from jaxval.encoders.attention import Attend, fastest, plain
from jaxval.encoders.entries import Limit
from jaxval.errors import DataError, EncoderError, JaxvalError, UserError
from jaxval.records import DatasetFiles, Encoder, Params, Progress, SelectBy, Text
from jaxval.validate import Bench, JudgedSet, Round

_LOG = logging.getLogger(__name__)

_PASSAGE_LEN, _QUERY_LEN = 256, 64


@dataclass(frozen=True)
class Prepared:
    """A bench, what the ledger is to know about each of its series, and what decides.

    Attributes:
      bench, settings: of each series by its digest.
      select_by: which checkpoint is best.
      screening: which of them are put to the whole corpus; None for all.
    """

    bench: Bench
    settings: dict[str, dict[str, Any]]
    select_by: SelectBy
    screening: Screening | None = None


@dataclass(frozen=True)
class _Traits:
    """What an encoder asks of its texts; None where it does not say.

    Attributes:
      tokenizer: where its tokenizer lies.
      usual: tokens of a text that it was made for.
      limit: tokens of a text at most.
      vocabulary: token ids at most.
      passage_prefix, query_prefix: what stands before a text.
    """

    tokenizer: str | None = None
    usual: int | None = None
    limit: Limit | None = None
    vocabulary: int | None = None
    passage_prefix: str | None = None
    query_prefix: str | None = None

    def length(self, flag: int | None, otherwise: int) -> int:
        """Tokens of a text: what the flag says; else what is usual, within the limit."""
        usual = self.usual or otherwise
        return flag or (usual if self.limit is None else min(usual, self.limit.tokens))

    def check(self, made: Tokenizer, *, passage_len: int, query_len: int) -> None:
        """Raises EncoderError unless these tokens are within it."""
        for flag, length in {"passage": passage_len, "query": query_len}.items():
            if self.limit is not None and length > self.limit.tokens:
                raise EncoderError(
                    f"--{flag}_max_len={length}: the model has {self.limit};"
                    f" set it to {self.limit.tokens} or less"
                )
        if self.vocabulary is not None and made.vocabulary > self.vocabulary:
            raise EncoderError(
                f"the tokenizer has {made.vocabulary} ids and the model {self.vocabulary}"
                " embeddings: --tokenizer and --model do not belong together"
            )


@dataclass(frozen=True)
class _Encoding:
    """The encoder and how its texts become tokens.

    Attributes:
      build: makes the encoder, of attention that suits the device.
      base: what the checkpoints hold adapters of, if they do.
      identity: what a series keeps of it.
    """

    build: Callable[[Attend], Encoder]
    tokenizer: Tokenizer
    passages: Recipe
    queries: Recipe
    base: Base | None
    identity: dict[str, Any]


def prepare(
    config: Config, open_devices: Callable[[], Sequence[jax.Device]], progress: Progress
) -> Prepared:
    """Makes the bench; the devices are opened when all else has been found right.

    Raises:
      UserError: the first fault that was found, in one line.
    """
    search = config.search
    parsed = measuring.parse(search.measures, search.depth)
    sets = [(files, load_queries(files)) for files in config.datasets]
    encoding = _encoding(config)
    judged = [
        _ready(files, queries, config, encoding, parsed, progress) for files, queries in sets
    ]
    if config.confirm:
        _check_sample(*[(one.name, corpus.count) for corpus, one, _ in judged])
        _check_source(*config.datasets, digest=judged[1][2]["corpus"])
    devices = open_devices()
    encoder = encoding.build(fastest(devices[0]))
    batch_tokens = config.batch_tokens or default_batch_tokens(devices[0])
    bench = Bench(
        abstract_params=_held(encoder, config.model),
        query_tower=Tower(encoder.encode_queries, devices, batch_tokens),
        passage_tower=Tower(encoder.encode_passages, devices, batch_tokens),
        rounds=_rounds([(corpus, one) for corpus, one, _ in judged]),
        devices=tuple(devices),
        params_paths=config.model.params_paths,
        base=encoding.base,
        similarity=search.similarity,
        index_dtype=search.index_dtype,
        depth=search.depth,
        measures=tuple(parsed),
    )
    select_by = _select_by(config.select_by, bench, bench.sets[-1 if config.confirm else 0])
    screening = _screening(select_by, bench) if config.confirm else None
    by_series = {one.series: settings for _, one, settings in judged}
    return Prepared(bench, by_series, select_by, screening)


def ranking(config: Config) -> dict[str, Any]:
    """What of a series' settings decides, with the texts, how a checkpoint ranks passages.

    Raises:
      UserError: the settings are at fault.
    """
    return _ranking(config, _encoding(config))


def _ranking(config: Config, encoding: _Encoding) -> dict[str, Any]:
    return {
        "tokenizer": encoding.tokenizer.digest,
        "passages": asdict(encoding.passages),
        "query texts": asdict(encoding.queries),
        "encoder": encoding.identity,
        "similarity": config.search.similarity,
        "index_dtype": config.search.index_dtype,
    }


def _check_sample(sample: tuple[str, int], whole: tuple[str, int]) -> None:
    """Raises UserError unless the sample, a name and how many passages, is the smaller."""
    if sample[1] >= whole[1]:
        raise UserError(
            f"--confirm: {sample[0]} has {sample[1]:,} passages and {whole[0]} {whole[1]:,}:"
            " name the sample by the first --dataset, and the whole by the second"
        )


def _check_source(sample: DatasetFiles, whole: DatasetFiles, *, digest: str) -> None:
    """Raises UserError if the sample's manifest names another corpus than this digest's."""
    source = samples.drawn_from(sample.corpus)
    if source not in (None, digest):
        raise UserError(
            f"--confirm: by its manifest {sample.name} ({sample.corpus.parent}) was drawn from"
            f" another corpus than {whole.corpus} is now: sample that anew"
        )


def _screening(select_by: SelectBy, bench: Bench) -> Screening:
    """The first set screens for the second.

    Raises:
      UserError: it is not the second that decides.
    """
    sample, whole = bench.sets
    if select_by.dataset != whole.name:
        raise UserError(
            f"--select_by={select_by.dataset}:{select_by.measure}: with --confirm the second"
            f" --dataset decides: write --select_by={whole.name}:{select_by.measure}"
        )
    by_sample = replace(select_by, dataset=sample.name, series=sample.series)
    return Screening(by_sample, select_by)


def _select_by(text: str | None, bench: Bench, usual: JudgedSet) -> SelectBy:
    """What `NAME:MEASURE` names; by default the usual set and its first measure."""
    name, _, measure = (text or f"{usual.name}:{bench.measures[0]}").partition(":")
    series = {judged.name: judged.series for judged in bench.sets}
    measures = {str(one): one for one in bench.measures}
    if name not in series or measure not in measures:
        raise UserError(
            f"--select_by={text} must be NAME:MEASURE, a name of --dataset"
            f" ({', '.join(series)}) and one of --measures ({', '.join(measures)})"
        )
    lower_is_better = measuring.lower_is_better(measures[measure])
    return SelectBy(name, series[name], measure, lower_is_better)


def _encoding(config: Config) -> _Encoding:
    texts, model = config.texts, config.model
    readers.check_template(texts.passage_template)
    build, identity, traits = _encoder(model)
    passage_len = traits.length(texts.passage_max_len, _PASSAGE_LEN)
    query_len = traits.length(texts.query_max_len, _QUERY_LEN)
    passage_prefix = _prefix("passage", texts.passage_prefix, traits.passage_prefix)
    query_prefix = _prefix("query", texts.query_prefix, traits.query_prefix)
    made = tokenizer.load(model.tokenizer or traits.tokenizer or "")
    traits.check(made, passage_len=passage_len, query_len=query_len)
    base = _base(model, _held(build(plain), model))
    return _Encoding(
        build=build,
        tokenizer=made,
        passages=Recipe(texts.passage_template, passage_prefix, passage_len),
        queries=Recipe("{text}", query_prefix, query_len),
        base=base,
        identity=identity | _params_identity(model, base),
    )


def _prefix(kind: str, flag: str | None, folder_says: str | None) -> str:
    """What stands before each text of a kind; said, since nothing else shows it."""
    prefix = (folder_says or "") if flag is None else flag
    source = "--model says" if flag is None else f"--{kind}_prefix says"
    if prefix:
        _LOG.info("before each %s stands %r, as %s", kind, prefix, source)
    elif folder_says:
        _LOG.info("before each %s stands nothing; --model says %r", kind, folder_says)
    return prefix


def _params_identity(model: Model, base: Base | None) -> dict[str, Any]:
    """What a series keeps of where the parameters come from."""
    paths = model.params_paths
    identity: dict[str, Any] = {"dtype": model.dtype, "params_path": paths.tree}
    if paths.query is not None:
        identity |= {"params_paths": [paths.query, paths.passage]}
    if base is not None:
        content = hashlib.sha256()
        for leaf in jax.tree.leaves(base.params):
            content.update(np.asarray(leaf).tobytes())
        identity |= {"base_params": content.hexdigest()[:16], "lora_alpha": base.alpha}
    return identity


def _base(model: Model, abstract_params: Params) -> Base | None:
    """What --base_params names, in host memory.

    Raises:
      UserError: it cannot be read, or is not the encoder's.
    """
    if model.base_params is None or model.lora_alpha is None:
        return None
    try:
        restored = read_base(model.base_params, abstract_params)
    except JaxvalError as error:
        raise UserError(f"--base_params={model.base_params}: {error}") from error
    if restored.untied:
        raise UserError(
            f"--base_params={model.base_params} holds two towers, {restored.found_at}: name a"
            " checkpoint of one, which both had when the training began"
        )
    _LOG.info("the base is %s, parameters at %s", model.base_params, restored.found_at)
    return Base(restored.params, model.lora_alpha)


def read_base(name: str, abstract_params: Params) -> Restored:
    """The encoder's parameters out of a checkpoint, or of a model folder's weights.

    Raises:
      JaxvalError: it cannot be read, or is not the encoder's.
    """
    if (checkpoint := restore.standing(name)) is not None:
        return restore.read(checkpoint, abstract_params)
    try:
        described = folder.read(name, weights=True)
    except EncoderError as error:
        if any((Path(name).expanduser() / file).exists() for file in folder.DESCRIPTIONS):
            raise
        raise EncoderError(
            "there is neither an Orbax checkpoint (one step's directory) nor a model folder"
            " (config.json beside its weights): name one of them"
        ) from error
    weights, _ = folder.load_weights(described)
    return restore.fitted(weights, abstract_params)


def _held(encoder: Encoder, model: Model) -> Params:
    """The encoder's tree as a device shall hold it. A folder's encoder knows which of its
    leaves stay in float32; another's are all cast to --dtype."""
    tree = encoder.abstract_params()
    if model.folder:
        return tree

    def cast(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        floating = jnp.issubdtype(leaf.dtype, jnp.floating)
        return jax.ShapeDtypeStruct(leaf.shape, model.dtype if floating else leaf.dtype)

    return jax.tree.map(cast, tree)


def _encoder(model: Model) -> tuple[Callable[[Attend], Encoder], dict[str, Any], _Traits]:
    """What makes the encoder, what identifies it, and what it asks of its texts."""
    if model.factory:
        encoder = adapter.load_factory(model.factory)
        adapter.check(encoder, f"--encoder={model.factory}")
        shapes = {
            show(path): leaf.shape for path, leaf in flatten(encoder.abstract_params()).items()
        }
        source = adapter.source_digest(model.factory)
        identity: dict[str, Any] = {
            "encoder": model.factory,
            "source": source,
            "shapes": _digest(shapes),
        }
        return lambda attend: encoder, identity, _Traits()
    read = folder.read(model.folder or "")

    def build(attend: Attend) -> Encoder:
        return folder.build(
            read,
            dtype=model.dtype,
            pooling=model.pooling,
            normalize=model.normalize,
            dim=model.dim,
            attend=attend,
        )

    build(plain)  # Whatever does not fit fails here, before a device is opened.
    identity = {
        "model": read.digest,
        "pooling": model.pooling or read.pooling,
        "normalize": read.normalize if model.normalize is None else model.normalize,
        "dim": model.dim,
    }
    traits = _Traits(
        tokenizer=str(read.path),
        usual=read.max_seq_length,
        limit=read.config.limit,
        vocabulary=read.config.vocab_size,
        passage_prefix=read.passage_prefix,
        query_prefix=read.query_prefix,
    )
    return build, identity, traits


def _ready(
    files: DatasetFiles,
    queries: QuerySet,
    config: Config,
    encoding: _Encoding,
    measures: Sequence[Any],
    progress: Progress,
) -> tuple[TokenStore, JudgedSet, dict[str, Any]]:
    """A set's corpus and queries tokenized, its qrels in rows, its series named."""
    named = _candidates(config.search, queries)
    origin = readers.digest(files.corpus)
    corpus = _tokenize_corpus(files, origin, named, config, encoding, progress)
    stored = _tokenize_queries(files, queries, config, encoding, progress)
    rows = corpus.find(sorted({doc for grades in queries.qrels.values() for doc in grades}))
    _report(queries, stored, corpus, rows, "in the corpus" if named is None else "candidates")
    if not rows:
        where = files.corpus if named is None else f"{config.search.rerank} and {files.corpus}"
        raise DataError(
            f"--dataset={files.name}: none of the judged documents is in {where}:"
            f" do {files.qrels} and the corpus use the same ids?"
        )
    settings = {
        "dataset": files.name,
        "corpus": origin,
        "queries": queries.digest,
        **_ranking(config, encoding),
        "depth": config.search.depth,
        "measures": sorted(map(str, measures)),
    }
    if named is not None:
        settings["candidates"] = _digest({query: sorted(ids) for query, ids in named.items()})
    judged = JudgedSet(
        name=files.name,
        series=_digest(settings),
        queries=stored,
        query_ids=tuple(text.id for text in queries.texts),
        qrels={
            query: {
                str(rows.get(doc, f"outside:{quote(doc)}")): grade
                for doc, grade in grades.items()
            }
            for query, grades in queries.qrels.items()
        },
        candidates=None if named is None else _in_rows(queries, named, corpus),
    )
    return corpus, judged, settings


def _candidates(search: Search, queries: QuerySet) -> Candidates | None:
    """Of each query, the passages that are scored; None for all."""
    if search.rerank is None:
        return None
    run = read_run(search.rerank, search.depth, queries.qrels)
    without = len(queries.texts) - len(run.hits)
    if without:
        remark = "%s: of %d judged queries %d are not in %s and find nothing"
        _LOG.warning(remark, queries.name, len(queries.texts), without, search.rerank)
    return run.hits


def _among(
    texts: Iterable[Text], ids: Collection[str], flag: str, files: DatasetFiles
) -> Iterator[Text]:
    """Those of these ids; DataError if there is none."""
    found = 0
    for text in texts:
        if text.id in ids:
            found += 1
            yield text
    if not found:
        raise DataError(
            f"{flag}: none of the passages it names ({min(ids)!r}, …) is in {files.corpus}:"
            " name a run of this corpus"
        )


def _in_rows(
    queries: QuerySet, named: Candidates, corpus: TokenStore
) -> tuple[np.ndarray, ...]:
    """The candidates of each query, as rows of the corpus."""
    ids = sorted({id_ for passages in named.values() for id_ in passages})
    rows = corpus.find(ids)
    if len(rows) < len(ids):
        remark = "%s: of %d candidates %d are not in the corpus and are left out"
        _LOG.warning(remark, queries.name, len(ids), len(ids) - len(rows))
    return tuple(
        np.array([rows[id_] for id_ in named.get(text.id, ()) if id_ in rows], np.int64)
        for text in queries.texts
    )


def _tokenize_corpus(
    files: DatasetFiles,
    origin: str,
    named: Candidates | None,
    config: Config,
    encoding: _Encoding,
    progress: Progress,
) -> TokenStore:
    """The corpus, or of it the candidates alone."""
    texts = readers.read_texts(files.corpus)
    if named is not None:
        ids = frozenset(id_ for passages in named.values() for id_ in passages)
        texts = _among(texts, ids, f"--rerank={config.search.rerank}", files)
        origin = _digest([origin, sorted(ids)])
    return tokens.open_or_build(
        config.texts.token_dir,
        texts,
        origin,
        encoding.tokenizer,
        encoding.passages,
        places=lambda id_: readers.places(files.corpus, id_),
        bar=lambda: progress(f"{files.name}: tokenizing passages", None),
    )


def _tokenize_queries(
    files: DatasetFiles,
    queries: QuerySet,
    config: Config,
    encoding: _Encoding,
    progress: Progress,
) -> TokenStore:
    return tokens.open_or_build(
        config.texts.token_dir,
        queries.texts,
        queries.digest,
        encoding.tokenizer,
        encoding.queries,
        places=lambda id_: readers.places(files.queries, id_),
        bar=lambda: progress(f"{files.name}: tokenizing queries", None),
    )


def _report(
    queries: QuerySet,
    stored: TokenStore,
    corpus: TokenStore,
    rows: dict[str, int],
    where: str,
) -> None:
    """Says what the set holds, and everything about it that is left out or looks wrong."""
    judged = {doc for grades in queries.qrels.values() for doc in grades}
    _LOG.info(
        "%s: %d passages of %.0f tokens (%.1f%% padding, widths %s), %d queries of %.0f tokens",
        queries.name,
        corpus.count,
        corpus.tokens / corpus.count,
        100 * (1 - corpus.tokens / corpus.padded),
        " ".join(str(bucket.width) for bucket in corpus.buckets),
        stored.count,
        stored.tokens / stored.count,
    )
    irrelevant = sum(max(grades.values()) <= 0 for grades in queries.qrels.values())
    remarks = {
        "of %d judged queries %d have no relevant document, by their qrels": (
            len(queries.texts),
            irrelevant,
        ),
        f"of %d judged documents %d are not {where}; they count as never found": (
            len(judged),
            len(judged) - len(rows),
        ),
        "of %d queries %d reach --query_max_len and may be cut": (stored.count, stored.full),
        "of %d passages %d reach --passage_max_len and may be cut": (corpus.count, corpus.full),
        "beside %d judged queries, %d have no judgement and are left out": (
            len(queries.texts),
            queries.unjudged,
        ),
        "beside %d judged queries, %d of the qrels have no text and are left out": (
            len(queries.texts),
            queries.unknown_queries,
        ),
    }
    for remark, (whole, part) in remarks.items():
        if part:
            _LOG.warning("%s: " + remark, queries.name, whole, part)


def _rounds(pairs: Sequence[tuple[TokenStore, JudgedSet]]) -> tuple[Round, ...]:
    corpora = {corpus.digest: corpus for corpus, _ in pairs}
    return tuple(
        Round(corpus, tuple(judged for other, judged in pairs if other.digest == digest))
        for digest, corpus in corpora.items()
    )


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
