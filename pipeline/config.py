"""The configuration of a transcription run, checked before anything starts."""

from __future__ import annotations

import dataclasses
import os
import posixpath
from collections.abc import Iterable
from typing import Annotated, Any, Final, Literal, Self

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, field_validator, model_validator
from pydantic.dataclasses import dataclass

from pipeline.corpus.input_formats import FORMATS
from pipeline.corpus.listings import Choice
from pipeline.corpus.lists import expanded
from pipeline.decoding.settings import HOTWORD_WEIGHT, LM_WEIGHT, WORD_BONUS, DecoderSettings, is_beam, requested
from pipeline.errors import ErrorCode, UsageError
from pipeline.scoring.normalize import DEFAULT_NORMALIZER, resolve
from pipeline.secrets import has_secret
from pipeline.settings import checked
from pipeline.storage import uris
from sewd_model.files import BUNDLED
from sewd_model.hub import hub_name


def _path_to_text(value: Any) -> Any:
    if not isinstance(value, os.PathLike):
        return value
    path = os.fspath(value)
    return f"./{path}" if path == BUNDLED else path  # a path object means a path, even if its name is `bundled`


def _check_secrets(uri: str) -> str:
    if has_secret(uri):
        raise ValueError("holds a secret, which records and messages could show; set it in the environment")
    return uri


# A path or URI as a string or PathLike. It must not be empty, which would mean the working directory.
Uri = Annotated[str, Field(min_length=1), BeforeValidator(_path_to_text), AfterValidator(_check_secrets)]


_Beam = Annotated[int, Field(ge=1, le=10_000)]
_Nbest = Annotated[int, Field(ge=1, le=1000)]
_Weight = Annotated[float, Field(ge=0, le=100)]
_Bonus = Annotated[float, Field(ge=-100, le=100)]

_COLUMN_KEYS: Final = {"audio": "audio_filepath", "id": "utt_id"}


@dataclass(frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class RunConfig:
    """A transcription run.

    Attributes:
        inputs: files, directories, globs, .jsonl manifests, .tar shards, .parquet files; any fsspec URI.
        output: the RUN directory or prefix.
        model: checkpoint with a CTC head (Hugging Face layout): a directory or URI; a name on the hub, `ORG/NAME`,
            `ORG/NAME@REVISION` or `hf://ORG/NAME`, where no directory has it; `bundled` is the one in the package.
        classifiers: checkpoints with classification heads, each `URI` or `NAME=URI`; `bundled` has one for keywords.
        add_classifiers: further ones, in the same form, whose labels are added to the finished run at `output`.
        retry_errors: error codes of rows of the finished run at `output` that are done again; `all` is every code but
            DUPLICATE_ID.
        channels: `mix` downmixes, `split` makes an utterance of each channel, a number selects that channel, from 0.
        max_segment_s: longer audio is cut into segments of an eighth to a quarter of this; in seconds.
        cut: where: in the longest `pause`, by the levels of the sound; or by voice activity (`vad`), which needs the
            extra of that name.
        skip_silence: do not compute long pauses: digital silence, and steady noise far below the loud parts of the
            recording. What is skipped is counted as skipped seconds; tokens beside it that lie in noise are dropped.
        word_gap_s: a word ends where no token follows for this long, also if the model writes no delimiter there; in
            seconds; 0: only delimiters end words.
        normalizer: how references and hypotheses are normalised before errors are counted; kept as it is stored, see
            `pipeline.scoring.normalize`.
        keep_posteriors: keep the probable tokens of each frame in the table `posteriors`, from which `sewd redecode`
            makes other transcripts without the model. The transcripts of the run are made from them, too.
        lm: n-gram language model of words that a beam search uses: an ARPA file or a binary file of KenLM.
        hotwords: file of words that get a bonus in a beam search, one word or phrase a line.
        beam: texts that a beam search keeps; 1: greedy decoding; None: greedy unless `lm`, `hotwords` or `nbest` needs
            a beam, see `pipeline.decoding.settings`.
        nbest: most texts of an utterance that are kept; above 1, the column `nbest` of transcripts has them.
        lm_weight: what a natural logarithm of the language model counts, see `DecoderSettings`.
        word_bonus: what a word counts beside the language model, in nats.
        hotword_weight: what a hot-word counts, in nats.
        columns: names of columns in tables and manifests, each `KEY=NAME`, where KEY is `audio`, `id`, `text`,
            `speaker`, `label`, `offset`, `duration` or a name for a tag.
        input_format: what each of `inputs` is, a name of `pipeline.corpus.input_formats.FORMATS`; None: each shows it.
        allow_any_path: a manifest, table or Parquet file may name objects outside the store that it is in.
        limit: transcribe only the first utterances, at most this many; None: all.
        part_mib: size of a part, the unit of planning, in MiB of input.
        chunk_s: most audio in a chunk, the unit of commit, in seconds.
        chunk_rows: most rows in a chunk.
        max_error_rate: stop the run when more than this share of its rows failed, checked from 1,000 rows on.
        strict: stop the run at the first row that fails.
        deadline_s: a decoder process that has not returned the next row of a file for this long, in seconds, or a model
            process that has not returned an utterance, counts as hanging and is killed. It must be long enough to
            decode a segment, and everything before the segment if the format does not allow seeking.
        existing: what to do with a run that `output` already holds: `resume` it, `refuse` to start, `overwrite` it, or
            `update` it: transcribe what was added to the inputs or has changed, and drop what is gone.
        address: `local` starts a Ray cluster on this machine; `auto` or HOST:PORT joins one.
        actors: most recogniser actors; None: one for each node, or as many as the GPUs allow.
        min_actors: fewest recogniser actors while there is work. Ray starts and stops actors between the two, and an
            autoscaled cluster its nodes. None: always `actors`, or one where the cluster can grow and `actors` is None.
        gpus_per_actor: GPUs that an actor holds; None: 1 if the cluster has GPUs, else 0.
        cpus_per_actor: Ray CPUs that an actor holds; None: what decoding leaves of its node, at most 1 beside a GPU.
        threads: threads that an actor computes with; None: its share of the processors.
        dtype: number format that the model computes in: `int8` on CPUs only, `bfloat16` and `float16` on GPUs only;
            `auto`: see `sewd_model.load_engine`.
    """

    inputs: Annotated[tuple[Uri, ...], Field(min_length=1)]
    output: Uri
    model: Uri = BUNDLED
    classifiers: tuple[Uri, ...] = ()
    add_classifiers: tuple[Uri, ...] = ()
    retry_errors: tuple[str, ...] = ()
    channels: Literal["mix", "split"] | Annotated[int, Field(ge=0)] = "mix"
    max_segment_s: Annotated[float, Field(ge=1, le=600)] = 60.0
    cut: Literal["pause", "vad"] = "pause"
    skip_silence: bool = True
    word_gap_s: Annotated[float, Field(ge=0, le=60)] = 0.5
    normalizer: str = DEFAULT_NORMALIZER
    keep_posteriors: bool = False
    lm: Uri | None = None
    hotwords: Uri | None = None
    beam: _Beam | None = None
    nbest: _Nbest = 1
    lm_weight: _Weight = LM_WEIGHT
    word_bonus: _Bonus = WORD_BONUS
    hotword_weight: _Weight = HOTWORD_WEIGHT
    columns: tuple[str, ...] = ()
    input_format: str | None = None
    allow_any_path: bool = False
    limit: Annotated[int, Field(ge=1)] | None = None
    part_mib: Annotated[float, Field(gt=0, le=4096)] = 32.0
    chunk_s: Annotated[float, Field(gt=0, le=1800)] = 1200.0
    chunk_rows: Annotated[int, Field(ge=1, le=100_000)] = 2000
    max_error_rate: Annotated[float, Field(ge=0, le=1)] = 0.05
    strict: bool = False
    deadline_s: Annotated[float, Field(gt=0, le=86_400)] = 600.0
    existing: Literal["resume", "refuse", "overwrite", "update"] = "resume"
    address: str = "local"
    actors: Annotated[int, Field(ge=1)] | None = None
    min_actors: Annotated[int, Field(ge=1)] | None = None
    gpus_per_actor: Annotated[float, Field(ge=0)] | None = None
    cpus_per_actor: Annotated[float, Field(gt=0)] | None = None
    threads: Annotated[int, Field(ge=1)] | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16", "int8"] = "auto"

    @field_validator("normalizer")
    @classmethod
    def _normalizer_is_resolved(cls, value: str) -> str:
        return _resolved(value)

    @field_validator("input_format")
    @classmethod
    def _format_is_known(cls, value: str | None) -> str | None:
        if value is not None and value not in FORMATS:
            raise ValueError(f"must be one of {', '.join(FORMATS)}")
        return value

    @field_validator("retry_errors")
    @classmethod
    def _codes_are_known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for code in value:
            if code not in ("all", *ErrorCode):
                raise ValueError(f"{code!r} is neither `all` nor an error code such as CRASHED")
        return value

    @model_validator(mode="after")
    def _one_change_at_a_time(self) -> Self:
        if self.retry_errors and (self.add_classifiers or self.existing != "resume"):
            raise ValueError("retry-errors: not together with --add-classifier, --update, --new-run or --overwrite")
        return self

    @field_validator("columns")
    @classmethod
    def _columns_are_pairs(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        keys = [pair.partition("=")[0] for pair in value]
        for pair in value:
            key, equals, name = pair.partition("=")
            if not (key and equals and name):
                raise ValueError(f"{pair!r} is not KEY=NAME, for example text=sentence")
            if keys.count(key) > 1:
                raise ValueError(f"{key} has two names")
        return value

    @model_validator(mode="after")
    def _actor_range_is_valid(self) -> Self:
        if self.min_actors is not None and self.min_actors > (self.actors or 0):
            raise ValueError(f"actors: {self.min_actors}:{self.actors} is not a range")
        return self

    @property
    def choice(self) -> Choice:
        """What the user says about the inputs."""
        return Choice(column_names(self.columns), self.input_format)

    def decoder(self) -> DecoderSettings:
        """How posteriors become tokens. Reads the hot-words, and the language model for its digest.

        Raises:
            UsageError: two options exclude each other, or a file does not exist.
            StorageError: a file could not be read.
        """
        return requested(**{name: getattr(self, name) for name in DECODING})

    @property
    def has_beam(self) -> bool:
        """Whether texts come from a beam search, and not from greedy decoding."""
        return is_beam(self.lm, self.hotwords, self.beam, self.nbest)

    @property
    def tasks(self) -> dict[str, str]:
        """Classifier URI by task name: the name before `=`, else the last component of the URI.

        Raises:
            UsageError: a classifier has no name or no URI, or two have the same name.
        """
        return _by_task(self.classifiers)

    @property
    def added_tasks(self) -> dict[str, str]:
        """As `tasks`, of the classifiers that are added."""
        return _by_task(self.add_classifiers)


@dataclass(frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class RedecodeConfig:
    """A run that is made of the kept posteriors of another.

    Attributes:
        run: the run that keeps them; it must be finished.
        output: the RUN directory or prefix of the new run.
        word_gap_s: as in `RunConfig`; None: as the run has it.
        normalizer: as in `RunConfig`; None: as the run has it.
        lm: as in `RunConfig`, and so are the next ones: decoding is greedy by default, however the run was decoded.
        hotwords: see `lm`.
        beam: see `lm`.
        nbest: see `lm`.
        lm_weight: see `lm`.
        word_bonus: see `lm`.
        hotword_weight: see `lm`.
        existing: what to do with a run that `output` already holds: `resume` it, `refuse` to start, or `overwrite` it.
        address: `local` starts a Ray cluster on this machine; `auto` or HOST:PORT joins one.
    """

    run: Uri
    output: Uri
    word_gap_s: Annotated[float, Field(ge=0, le=60)] | None = None
    normalizer: str | None = None
    lm: Uri | None = None
    hotwords: Uri | None = None
    beam: _Beam | None = None
    nbest: _Nbest = 1
    lm_weight: _Weight = LM_WEIGHT
    word_bonus: _Bonus = WORD_BONUS
    hotword_weight: _Weight = HOTWORD_WEIGHT
    existing: Literal["resume", "refuse", "overwrite"] = "resume"
    address: str = "local"

    @field_validator("normalizer")
    @classmethod
    def _normalizer_is_resolved(cls, value: str | None) -> str | None:
        return None if value is None else _resolved(value)


def _resolved(normalizer: str) -> str:
    """A normalizer as it is stored."""
    try:
        return resolve(normalizer)
    except UsageError as error:
        raise ValueError(str(error).removeprefix("normalizer: ")) from error


def _by_task(specs: Iterable[str]) -> dict[str, str]:
    uri_by_task: dict[str, str] = {}
    for spec in specs:
        name, equals, uri = spec.partition("=")
        if not equals or "/" in name:
            on_hub = hub_name(spec)
            name, uri = posixpath.basename(on_hub.repo if on_hub else uris.absolute(spec)), spec
        if not name or not uri:
            raise UsageError(f"classifier: {spec!r} is neither MODEL nor NAME=MODEL")
        if name in uri_by_task:
            raise UsageError(f"classifier: two have the name {name}; give them names, --classifier NAME=MODEL")
        uri_by_task[name] = model_uri(uri)
    return uri_by_task


FORMAT_HELP: Final = f"What INPUT is, where its content shows something else: {', '.join(FORMATS)}."


def column_names(pairs: Iterable[str]) -> dict[str, str]:
    """The names of columns by the keys of a manifest, from `RunConfig.columns`."""
    split = (pair.split("=", 1) for pair in pairs)
    return {_COLUMN_KEYS.get(key, key): name for key, name in split}


# The fields that are options of decoding, see `pipeline.decoding.settings.requested`.
DECODING: Final = ("lm", "hotwords", "beam", "nbest", "lm_weight", "word_bonus", "hotword_weight")

# Names of the command line that differ from those of the fields.
OPTIONS: Final = {
    "chunk_s": "chunk-seconds",
    "max_segment_s": "max-segment",
    "word_gap_s": "word-gap",
    "deadline_s": "deadline",
    "classifiers": "classifier",
    "add_classifiers": "add-classifier",
    "retry_errors": "retry-errors",
    "columns": "column",
    "min_actors": "actors",
}


def make_config(**values: Any) -> RunConfig:
    """A `RunConfig` from its fields, with absolute paths.

    Raises:
        UsageError: a value is missing, unknown or out of range; the message begins with the name of its option.
    """
    config = checked(RunConfig, values, OPTIONS)
    _ = config.tasks, config.added_tasks  # checks the names of the classifiers
    return dataclasses.replace(
        config,
        inputs=tuple(uris.absolute(uri) for names in config.inputs for uri in expanded(names)),
        output=uris.absolute(config.output),
        model=model_uri(config.model),
        lm=config.lm and uris.absolute(config.lm),
        hotwords=config.hotwords and uris.absolute(config.hotwords),
    )


def make_redecode_config(**values: Any) -> RedecodeConfig:
    """A `RedecodeConfig` from its fields, with absolute paths.

    Raises:
        UsageError: a value is missing, unknown or out of range; the message begins with the name of its option.
    """
    config = checked(RedecodeConfig, values, OPTIONS)
    return dataclasses.replace(
        config,
        run=uris.absolute(config.run),
        output=uris.absolute(config.output),
        lm=config.lm and uris.absolute(config.lm),
        hotwords=config.hotwords and uris.absolute(config.hotwords),
    )


def model_uri(uri: str) -> str:
    """The absolute URI of a checkpoint; the bundled model and those on the hub keep their names."""
    return uri if uri == BUNDLED or hub_name(uri) else uris.absolute(uri)
