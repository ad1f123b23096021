"""The record of a run, `run.json`: its JSON, and typed access to it.

The JSON is kept as it was read. A record of an earlier version lacks keys, for which the properties have defaults, and
a record of a later version has more, which saving it here does not drop.
"""

from __future__ import annotations

import dataclasses
import json
import posixpath
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, Field, NonNegativeInt, ValidationError

from pipeline.corpus.left_out import LeftOut
from pipeline.decoding.acoustics import Acoustics
from pipeline.errors import DamagedRunError
from pipeline.runs.commit import is_below
from pipeline.runs.status import RunStatus
from pipeline.runs.totals import Totals


@dataclass(frozen=True)
class WorkSummary:
    """The work of one start of the driver.

    Attributes:
        chunks: number of chunks that it committed.
        utterances: their rows with a transcript.
        errors: their rows without one.
        audio_s: their audio, in seconds.
        elapsed_s: time from the moment that the first part could start to the last commit, in seconds; it includes the
            start of the actors.
        stage_s: time in each stage, summed over its processes, in seconds; by name of the stage.
        rtfx: `audio_s / elapsed_s`; None where no time passed.
        model_busy: share of the elapsed time in which the recognisers computed, 0..1; None where their number varied.
        recognizers: number of recogniser actors, at most.
        recognizers_replaced: number of recogniser processes that died and were replaced.
    """

    chunks: int = 0
    utterances: int = 0
    errors: int = 0
    audio_s: float = 0.0
    elapsed_s: float = 0.0
    stage_s: dict[str, float] = dataclasses.field(default_factory=dict)
    rtfx: float | None = None
    model_busy: float | None = None
    recognizers: int = 0
    recognizers_replaced: int = 0


@dataclass(frozen=True)
class PlanUpdate:
    """A change of the plan of a run after it was created, see `pipeline.runs.update`.

    Attributes:
        number: 1 for the first one of the run.
        at: when: UTC, ISO 8601.
        added: number of objects that the plan did not name before.
        changed: number of objects that it named as they were before.
        removed: number of objects that it does not name any more.
    """

    number: int
    at: str
    added: int = 0
    changed: int = 0
    removed: int = 0

    def to_metadata(self) -> dict[bytes, bytes]:
        """As the metadata of the plan holds it."""
        return {_UPDATE_KEY: json.dumps(dataclasses.asdict(self)).encode()}

    @staticmethod
    def from_metadata(metadata: Mapping[bytes, bytes] | None) -> PlanUpdate | None:
        """The update that wrote the plan with this metadata; None if it is the plan that created the run."""
        stored = (metadata or {}).get(_UPDATE_KEY)
        return None if stored is None else PlanUpdate.from_json(json.loads(stored))

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> PlanUpdate:
        """The update that these values describe; keys that this version does not know are ignored."""
        return PlanUpdate(**{f.name: values[f.name] for f in dataclasses.fields(PlanUpdate) if f.name in values})


_UPDATE_KEY = b"sewd.update"
_WORK_KEYS = frozenset(f.name for f in dataclasses.fields(WorkSummary))
_NO_VERSIONS = frozenset({"id", "started", "host", "predicted"})  # of an attempt, beside what it did


def _check_time(text: str) -> str:
    datetime.fromisoformat(text)
    return text


def _check_below(folder: str) -> str:
    if not is_below(folder):
        raise ValueError(f"{folder!r} is not below the run")
    return folder


_Time = Annotated[str, AfterValidator(_check_time)]


# The types of the values that this program reads; other keys of the record may hold anything.
class _Fingerprint(BaseModel):
    classifiers: dict[str, str] | None = None
    commits: dict[str, str] = {}


class _Predicted(BaseModel):
    run_s: float = Field(gt=0, allow_inf_nan=False)
    audio_s: float = Field(0, ge=0, allow_inf_nan=False)


class _Work(BaseModel):
    predicted: _Predicted | None = None
    started: _Time = ""
    chunks: int = 0
    utterances: int = 0
    errors: int = 0
    audio_s: float = 0
    elapsed_s: float = 0
    stage_s: dict[str, float] = {}
    rtfx: float | None = None
    model_busy: float | None = None
    recognizers: int = 0
    recognizers_replaced: int = 0


class _Update(BaseModel):
    number: int
    at: _Time
    added: int = 0
    changed: int = 0
    removed: int = 0


class _Totals(BaseModel):
    chunks: int = 0
    utterances: int = 0
    errors: int = 0
    audio_s: float = 0
    source_bytes: int = 0
    compute_s: float = 0
    error_codes: dict[str, int] = {}
    engines: dict[str, int] = {}
    fallbacks: dict[str, int] = {}
    splits: int = 0


class _Addition(BaseModel):
    folder: Annotated[str, AfterValidator(_check_below)]
    classifiers: dict[str, str]
    digests: dict[str, str]
    commits: dict[str, str] = {}
    status: str
    reason: str | None = None
    attempts: list[_Work] = []


class _Record(BaseModel):
    acoustics: dict[str, Any] | None = None
    source: str | None = None
    reason: str | None = None
    created: _Time | None = None
    finished: _Time | None = None
    parts: NonNegativeInt | None = None
    input_bytes: NonNegativeInt | None = None
    fingerprint: _Fingerprint | None = None
    config: dict[str, Any] | None = None
    attempts: list[_Work] | None = None
    updates: list[_Update] | None = None
    totals: _Totals | None = None
    adding: _Addition | None = None
    added: list[_Addition] = []


def _validate(model: type[BaseModel], values: Any) -> None:
    try:
        model.model_validate(values, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def check_prediction(values: Any) -> None:
    """Check that a record may hold `values` as the prediction of an attempt.

    Raises:
        ValueError: a value is missing, or is none that `sewd plan` prints.
    """
    _validate(_Predicted, values)


@dataclass(frozen=True)
class Attempt:
    """One start of the driver, as the record holds it.

    Attributes:
        values: the JSON object: `id`, `started` and `host`, the versions by name, `predicted` if there is a prediction,
            and once the start has ended, the keys of its `WorkSummary`.
    """

    values: Mapping[str, Any]

    @property
    def started(self) -> str:
        """When the driver started: UTC, ISO 8601."""
        return str(self.values.get("started", ""))

    @property
    def versions(self) -> dict[str, Any]:
        """The versions of Python and of the packages, by name."""
        return {key: value for key, value in self.values.items() if key not in _NO_VERSIONS | _WORK_KEYS}

    @property
    def predicted_s(self) -> float | None:
        """Seconds that `sewd plan` predicted from the start to the end of the driver; None without a prediction."""
        predicted = self.values.get("predicted")
        return None if predicted is None else float(predicted["run_s"])

    @property
    def work(self) -> WorkSummary | None:
        """What the start did; None if it has not ended, failed or was killed."""
        if "elapsed_s" not in self.values:
            return None
        return WorkSummary(**{key: value for key, value in self.values.items() if key in _WORK_KEYS})

    def with_work(self, work: WorkSummary) -> Attempt:
        """The attempt with what it did."""
        return Attempt({**self.values, **dataclasses.asdict(work)})


@dataclass(frozen=True)
class Addition:
    """Classifiers that are added to a finished run; see `pipeline.runs.additions`.

    Attributes:
        folder: where its commits are kept, relative to the run.
        classifiers: URI of each checkpoint, by task.
        digests: digest of each checkpoint, by task.
        commits: of the checkpoints that are on the hub, see `pipeline.runs.hub_commits`.
        status: of the addition; the run itself stays done.
        reason: why the addition failed; None if it did not.
        attempts: every start of a driver that worked on it, first to last.
    """

    folder: str
    classifiers: Mapping[str, str]
    digests: Mapping[str, str]
    commits: Mapping[str, str] = dataclasses.field(default_factory=dict)
    status: RunStatus = RunStatus.RUNNING
    reason: str | None = None
    attempts: tuple[Attempt, ...] = ()

    @property
    def specifications(self) -> tuple[str, ...]:
        """The classifiers as `RunConfig.classifiers` has them."""
        return tuple(f"{task}={uri}" for task, uri in self.classifiers.items())

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> Addition:
        """The addition in a `run.json`."""
        return Addition(
            folder=values["folder"],
            classifiers=values["classifiers"],
            digests=values["digests"],
            commits=values.get("commits", {}),
            status=RunStatus(values["status"]),
            reason=values.get("reason"),
            attempts=tuple(map(Attempt, values.get("attempts", ()))),
        )


@dataclass(frozen=True)
class RunRecord:
    """The content of `run.json`.

    Attributes:
        values: the JSON object, all its keys, also those that this version does not know.
    """

    values: Mapping[str, Any]

    @staticmethod
    def parse(data: bytes) -> RunRecord:
        """The record that `run.json` holds.

        Raises:
            ValueError: `data` is not a JSON object, or a value in it has another type than this program writes.
        """
        try:
            values = json.loads(data)
        except RecursionError as error:
            raise ValueError("not a JSON object") from error
        if not isinstance(values, dict):
            raise ValueError("not a JSON object")
        _validate(_Record, values)
        return RunRecord(values)

    def encode(self) -> bytes:
        """The content of `run.json`."""
        return json.dumps(self.values, indent=2).encode()

    def updated(self, **changes: Any) -> RunRecord:
        """The record with `changes` to its keys; values are JSON's, or the classes that the properties return."""
        return RunRecord({**self.values, **{name: _to_json(value) for name, value in changes.items()}})

    @property
    def status(self) -> RunStatus:
        """The status; `UNKNOWN` if the record has none that this version knows."""
        return RunStatus(str(self.values.get("status")))

    @property
    def reason(self) -> str | None:
        """Why the run failed; None if it did not."""
        return self.values.get("reason")

    @property
    def created(self) -> str | None:
        """When the run was created: UTC, ISO 8601."""
        return self.values.get("created")

    @property
    def finished(self) -> str | None:
        """When the run was finished: UTC, ISO 8601; None if it is not done."""
        return self.values.get("finished")

    @property
    def parts(self) -> int:
        """Number of parts in the plan."""
        return self.values.get("parts") or 0

    @property
    def input_bytes(self) -> int:
        """Size of the planned input, in bytes."""
        return self.values.get("input_bytes") or 0

    @property
    def wall_s(self) -> float | None:
        """Seconds from the start of the driver to its end; None if the run was resumed or has not finished."""
        starts = [attempt.started for attempt in self.attempts if attempt.started]
        if len(starts) != 1 or not self.finished:
            return None
        started, finished = (datetime.fromisoformat(text).astimezone(UTC) for text in (starts[0], self.finished))
        return (finished - started).total_seconds()

    @property
    def predicted_s(self) -> float | None:
        """What `sewd plan` predicted for `wall_s`; None where there is no prediction, or no `wall_s`."""
        return None if self.wall_s is None else self.attempts[0].predicted_s

    @property
    def left_out(self) -> LeftOut:
        """What was passed over when the run was planned."""
        return LeftOut.from_json(self.values.get("left_out"))

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        """What the rows depend on, by name (`pipeline.runs.fingerprint`); empty if the record has none."""
        return self.values.get("fingerprint") or {}

    @property
    def model_digest(self) -> str:
        """Digest of the CTC checkpoint.

        Raises:
            DamagedRunError: the record lacks it.
        """
        return _required(self.fingerprint, "fingerprint", "model")

    @property
    def classifier_digests(self) -> dict[str, str]:
        """Digest of each classifier's checkpoint, by task."""
        return dict(self.fingerprint.get("classifiers") or {})

    @property
    def commits(self) -> dict[str, str]:
        """Commits of the checkpoints that are on the hub, those of an unfinished addition too: by name as requested."""
        return {**self.fingerprint.get("commits", {}), **(self.adding.commits if self.adding else {})}

    @property
    def first_classifiers(self) -> list[str]:
        """Names of the classifiers that the run was created with: without those that were added."""
        added = {task for addition in self.added for task in addition.digests}
        return [task for task in self.classifier_digests if task not in added]

    @property
    def config(self) -> Mapping[str, Any]:
        """The `RunConfig` that created the run, by field."""
        return self.values.get("config") or {}

    @property
    def normalizer(self) -> str:
        """The normalizer that its counts were made under.

        Raises:
            DamagedRunError: the record lacks it.
        """
        return _required(self.config, "config", "normalizer")

    @property
    def source(self) -> str | None:
        """URI of the run whose posteriors its transcripts were decoded from; None if they are of its own model."""
        return self.values.get("source")

    @property
    def decoding(self) -> str:
        """How its posteriors became texts, in words."""
        beam = self.fingerprint.get("beam")
        if beam is None:
            return "greedy"
        parts = [f"beam search of width {beam}"]
        for kind, name, weights in (
            ("language model", "lm", {"weight": "lm_weight", "word bonus": "word_bonus"}),
            ("hot-words", "hotwords", {"weight": "hotword_weight"}),
        ):
            if name in self.fingerprint:
                values = ", ".join(f"{words} {self.fingerprint.get(key)}" for words, key in weights.items())
                parts.append(f"{kind} {posixpath.basename(str(self.config.get(name)))} ({values})")
        return ", ".join(parts)

    @property
    def acoustics(self) -> Acoustics | None:
        """What the posteriors of the run mean; None if it keeps none.

        Raises:
            DamagedRunError: the record holds something else.
        """
        values = self.values.get("acoustics")
        try:
            return None if values is None else Acoustics.from_json(values)
        except ValueError as error:
            raise DamagedRunError(f"run.json is damaged (acoustics: {error})") from error

    @property
    def attempts(self) -> tuple[Attempt, ...]:
        """Every start of a driver, first to last."""
        return tuple(map(Attempt, self.values.get("attempts") or ()))

    @property
    def updates(self) -> tuple[PlanUpdate, ...]:
        """Every update of the plan, first to last."""
        return tuple(map(PlanUpdate.from_json, self.values.get("updates") or ()))

    @property
    def last_update(self) -> PlanUpdate | None:
        """The last update of the plan; None if there was none."""
        return self.updates[-1] if self.updates else None

    @property
    def adding(self) -> Addition | None:
        """The classifiers that are being added; None if none are."""
        values = self.values.get("adding")
        return None if values is None else Addition.from_json(values)

    @property
    def added(self) -> tuple[Addition, ...]:
        """The additions of classifiers that are finished, in their order."""
        return tuple(map(Addition.from_json, self.values.get("added") or ()))

    @property
    def folders(self) -> list[str]:
        """Where commits are kept, see `Commit.folder`: those of the run, and those of additions, finished or not."""
        additions = [*self.added, *([self.adding] if self.adding else [])]
        return ["", *(addition.folder for addition in additions)]

    @property
    def totals(self) -> Totals | None:
        """The totals when the run last ended; None if it never did."""
        totals = self.values.get("totals")
        return None if totals is None else Totals.from_record(totals)


def _required(values: Mapping[str, Any], name: str, key: str) -> str:
    if not isinstance(values.get(key), str):
        raise DamagedRunError(
            f"run.json is damaged (it lacks {name}.{key}); `sewd repair` makes it again from its copy"
        )
    return str(values[key])


def _to_json(value: Any) -> Any:
    if isinstance(value, Attempt):
        return dict(value.values)
    if isinstance(value, Totals | PlanUpdate):
        return dataclasses.asdict(value)
    if isinstance(value, Acoustics):
        return value.to_json()
    if isinstance(value, Addition):
        return {f.name: _to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, list | tuple):
        return [_to_json(item) for item in value]
    return value
