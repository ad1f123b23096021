"""What a run is asked to do, checked before anything starts, and the fingerprint that a resume must match."""

from __future__ import annotations

import dataclasses
import os
import posixpath
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic.dataclasses import dataclass

from pipeline.errors import UsageError
from pipeline.scoring.normalize import NORMALIZERS
from pipeline.storage import uris
from sewd_model.files import BUNDLED


def _text(value: Any) -> Any:
    if not isinstance(value, os.PathLike):
        return value
    path = os.fspath(value)
    return f"./{path}" if path == BUNDLED else path  # a path object that is so called is no name


# A path as a string or PathLike; an empty one would be the working directory.
Uri = Annotated[str, Field(min_length=1), BeforeValidator(_text)]


@dataclass(frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class RunConfig:
    """A transcription run.

    Attributes:
        inputs: files, directories, globs, .jsonl manifests, .tar shards, .parquet files; any fsspec URI.
        output: the RUN directory or prefix.
        model: checkpoint with a CTC head (Hugging Face layout), directory or URI; `bundled` is the one in the package.
        classifiers: checkpoints with classification heads, each `URI` or `NAME=URI`; `bundled` has one for keywords.
        channels: `mix` downmixes, `split` makes an utterance of each channel, a number picks that channel (0-based).
        max_segment_s: longer audio is cut, at its quietest frame, into segments no longer than this.
        normalizer: what references and hypotheses go through before errors are counted.
        limit: only the first so many utterances.
        part_mib: size of a part, the unit of planning, in MiB of input.
        chunk_s: size of a chunk, the unit of commit, in seconds of audio; `chunk_rows` in rows.
        max_error_rate: stop the run once more than this share of its rows failed, counted from 1,000 rows on.
        strict: stop the run at the first row that fails.
        deadline_s: a process to which a file's next row, or an utterance's result, does not come in this time hangs,
            and is ended. It is to hold the decoding of a segment, and of all that lies before it where a format cannot
            be entered in the middle.
        existing: a run that is at `output` already is gone on with (`resume`), refused (`refuse`), or removed for a
            new one (`overwrite`).
        address: `local` starts a Ray of its own; `auto` or HOST:PORT joins a cluster.
        actors: recogniser actors, at most; None: one, or as many as the GPUs allow.
        min_actors: fewest of them while there is work: Ray adds and ends them, and an autoscaled cluster its machines.
            None: always all, or where the cluster can grow and `actors` is None too, one.
        gpus_per_actor: None: 1 where the cluster has GPUs, else 0.
        cpus_per_actor: Ray CPUs an actor holds; None: what is left of the machine beside decoding.
        threads: that an actor computes with; None: its share of the processors.
        dtype: in what the model computes: `int8` on CPUs only, `bfloat16` and `float16` on GPUs only.
    """

    inputs: Annotated[tuple[Uri, ...], Field(min_length=1)]
    output: Uri
    model: Uri = BUNDLED
    classifiers: tuple[Uri, ...] = ()
    channels: Literal["mix", "split"] | Annotated[int, Field(ge=0)] = "mix"
    max_segment_s: Annotated[float, Field(ge=1, le=600)] = 60.0
    normalizer: str = "basic"
    limit: Annotated[int, Field(ge=1)] | None = None
    part_mib: Annotated[float, Field(gt=0, le=4096)] = 32.0
    chunk_s: Annotated[float, Field(gt=0, le=1800)] = 1200.0
    chunk_rows: Annotated[int, Field(ge=1, le=100_000)] = 2000
    max_error_rate: Annotated[float, Field(ge=0, le=1)] = 0.05
    strict: bool = False
    deadline_s: Annotated[float, Field(gt=0, le=86_400)] = 600.0
    existing: Literal["resume", "refuse", "overwrite"] = "resume"
    address: str = "local"
    actors: Annotated[int, Field(ge=1)] | None = None
    min_actors: Annotated[int, Field(ge=1)] | None = None
    gpus_per_actor: Annotated[float, Field(ge=0)] | None = None
    cpus_per_actor: Annotated[float, Field(gt=0)] | None = None
    threads: Annotated[int, Field(ge=1)] | None = None
    dtype: Literal["float32", "bfloat16", "float16", "int8"] = "float32"

    @field_validator("normalizer")
    @classmethod
    def _known_normalizer(cls, value: str) -> str:
        if value not in NORMALIZERS:
            raise ValueError(f"must be one of {', '.join(NORMALIZERS)}")
        return value

    @model_validator(mode="after")
    def _fewest_and_most(self) -> Self:
        if self.min_actors is not None and self.min_actors > (self.actors or 0):
            raise ValueError(f"actors: {self.min_actors}:{self.actors} is no range")
        return self

    @property
    def tasks(self) -> dict[str, str]:
        """Classifier URI by task name: the name before `=`, else the last part of the URI."""
        named: dict[str, str] = {}
        for spec in self.classifiers:
            name, equals, uri = spec.partition("=")
            if not equals or "/" in name:
                name, uri = posixpath.basename(uris.absolute(spec)), spec
            if not name or not uri:
                raise UsageError(f"classifiers: {spec!r} is neither DIR nor NAME=DIR")
            if name in named:
                raise UsageError(f"classifiers: two are called {name}: name them, --classifier NAME=DIR")
            named[name] = model_uri(uri)
        return named


_OPTIONS = {"chunk_s": "chunk-seconds", "max_segment_s": "max-segment", "deadline_s": "deadline"}  # of the command line


def make_config(**values: Any) -> RunConfig:
    """A RunConfig, its paths made absolute.

    Raises:
        UsageError: a value is out of its range; says which.
    """
    try:
        config = RunConfig(**values)
    except ValidationError as error:
        first, *others = error.errors(include_url=False)
        name = str(first["loc"][0]) if first["loc"] else "configuration"
        # Of a value that may be one of several kinds there is an error for each.
        told = [first["msg"], *(other["msg"] for other in others if other["loc"][:1] == first["loc"][:1])]
        option = _OPTIONS.get(name, name.replace("_", "-"))
        raise UsageError(f"{option}: {', or '.join(dict.fromkeys(told))} (got {first['input']!r})") from error
    _ = config.tasks  # their names are checked
    return dataclasses.replace(
        config,
        inputs=tuple(uris.absolute(uri) for uri in config.inputs),
        output=uris.absolute(config.output),
        model=model_uri(config.model),
    )


def model_uri(uri: str) -> str:
    """A checkpoint's `uris.absolute`; the bundled model keeps its name, which means the same on every machine."""
    return uri if uri == BUNDLED else uris.absolute(uri)
