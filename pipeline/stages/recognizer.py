"""A recogniser in this process, without Ray and without a run: audio in, transcripts out.

What it does with a recording is what a run does: the same decoding, cuts, pauses, model, words and labels. The rows in
between are those of a run, so that the two cannot differ.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import soundfile

from pipeline.audio.decode import AudioSettings
from pipeline.config import DECODING, RunConfig, model_uri
from pipeline.corpus.utterances import ObjectOpener, Utterance, broken_utterance
from pipeline.decoding.decoder import load_decoder
from pipeline.errors import AudioError, ErrorCode, UsageError
from pipeline.settings import checked, default_of
from pipeline.stages.heads import Heads, has_gpu, recognized_rows, set_torch_threads, torch_threads
from pipeline.stages.models import load_model_info
from pipeline.stages.rows import ReadRow, RowSettings, read_rows, utterance_rows
from pipeline.stages.settings import HeadSettings
from pipeline.stages.texts import TextSettings, labels, transcripts
from pipeline.storage import retry, uris
from pipeline.storage.checkpoints import pinned
from sewd_model import EngineStatus, Word
from sewd_model.files import shown

BATCH_S: Final = 600.0  # of audio that is decoded and computed together
BATCH_ROWS: Final = 2000
MAX_WAV_BYTES: Final = 2**31  # beyond, samples are passed as RF64
_PCM: Final = {"int16": "PCM_16", "int32": "PCM_32", "float32": "FLOAT", "float64": "DOUBLE"}
_REPR_TEXT: Final = 60

Encoded = bytes | bytearray | memoryview
Audio = str | os.PathLike[str] | Encoded | np.ndarray | Mapping[str, Any]
"""One recording: a path or URI, an encoded file, samples, or `{"array": samples, "sampling_rate": Hz}`."""


class NotAudioError(UsageError):
    """A value has no type, shape or sampling rate of audio."""


class Label(NamedTuple):
    """A label of a classifier, and its probability; of a regression head, `score` and the predicted value."""

    label: str
    score: float


@dataclass(frozen=True, repr=False)
class Segment:
    """What was recognised as one: a recording, or a piece of a long one.

    Attributes:
        start_s: start in the recording, seconds.
        duration_s: its length, seconds.
        text: the transcript.
        words: its words, with times in the recording, seconds, and confidences.
        confidence: geometric mean of the tokens' probabilities; None if the text is empty.
        labels: for each classifier, its labels, the most probable first.
    """

    start_s: float
    duration_s: float
    text: str
    words: tuple[Word, ...]
    confidence: float | None
    labels: dict[str, tuple[Label, ...]]

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.start_s:.2f}-{self.start_s + self.duration_s:.2f} s: {_short(self.text)}>"


@dataclass(frozen=True, repr=False)
class Transcript:
    """The result for one recording.

    Attributes:
        text: the transcript; the texts of the segments, joined by spaces. Empty if nothing could be read.
        words: its words, with times in the recording, seconds, and confidences.
        confidence: geometric mean of the tokens' probabilities; of several segments, the geometric mean of theirs by
            the lengths of their texts; None if the text is empty.
        labels: for each classifier, its labels, the most probable first; of several segments, the means of the scores
            by the lengths of the segments.
        duration_s: length of what was recognised, seconds.
        segments: the segments, in the order of time.
        error_code: an `ErrorCode` if the recording could not be read, or not to its end; else None.
        error: what is wrong, in words; else None.
        warning: what is wrong with the headers of the file, all of which was read; else None.
    """

    text: str = ""
    words: tuple[Word, ...] = ()
    confidence: float | None = None
    labels: dict[str, tuple[Label, ...]] = field(default_factory=dict)
    duration_s: float = 0.0
    segments: tuple[Segment, ...] = ()
    error_code: ErrorCode | None = None
    error: str | None = None
    warning: str | None = None

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        parts = [f"{self.duration_s:.2f} s"]
        parts += [f"{task}: {found[0].label} {found[0].score:.2f}" for task, found in self.labels.items() if found]
        parts += [f"{self.error_code}: {_short(self.error or '')}"] if self.error_code else []
        return f"<Transcript {_short(self.text)}, {', '.join(parts)}>"


def _short(text: str) -> str:
    return repr(text if len(text) <= _REPR_TEXT else f"{text[:_REPR_TEXT]}...")


class Recognizer:
    """A loaded model and its classifiers. `from_pretrained` makes one, `transcribe` uses it.

    It starts no process and no Ray, prints nothing and sets no signal handler. A result does not depend on what is
    transcribed beside it. One thread uses a recogniser at a time.
    """

    def __init__(self, config: RunConfig, device: str) -> None:
        """Load the checkpoints of a checked configuration, see `from_pretrained`."""
        info = load_model_info(config)
        decoder = config.decoder()
        load_decoder(decoder, info.acoustics)
        self.device, self.dtype = device, config.dtype
        self.threads = config.threads or _TORCH_THREADS.number()
        self._name = shown(config.model)
        self._rows = RowSettings(info.audio, info.min_samples, allow_any_path=True)
        self._texts = TextSettings(
            acoustics=info.acoustics,
            decoder=decoder,
            word_gap_s=config.word_gap_s,
            extend_words=True,
            normalizer=config.normalizer,
            classifiers=info.classifiers,
        )
        classifiers = tuple(config.tasks.values())
        heads = HeadSettings(
            config.model,
            classifiers,
            (),
            device,
            config.dtype,
            self.threads,
            hop_length=info.acoustics.hop_length,
            posteriors=not decoder.is_greedy,
        )
        with _TORCH_THREADS.one(device):
            self._heads: Heads = retry.with_retries(config.model, lambda: Heads(heads))

    @staticmethod
    def from_pretrained(
        name: str | os.PathLike[str],
        *,
        classifiers: str | Sequence[str] = (),
        device: Literal["cpu", "cuda"] | None = None,
        dtype: str = default_of(RunConfig, "dtype"),
        threads: int | None = None,
        channels: str | int = "mix",
        max_segment_s: float = default_of(RunConfig, "max_segment_s"),
        cut: str = default_of(RunConfig, "cut"),
        skip_silence: bool = default_of(RunConfig, "skip_silence"),
        word_gap_s: float = default_of(RunConfig, "word_gap_s"),
        lm: str | os.PathLike[str] | None = None,
        hotwords: str | os.PathLike[str] | None = None,
        beam: int | None = None,
        lm_weight: float = default_of(RunConfig, "lm_weight"),
        word_bonus: float = default_of(RunConfig, "word_bonus"),
        hotword_weight: float = default_of(RunConfig, "hotword_weight"),
    ) -> Recognizer:
        """Load a model.

        Args:
            name: checkpoint with a CTC head: a directory, any URI, a name on the hub (`ORG/NAME[@REVISION]`), or
                `bundled`.
            classifiers: checkpoints with classification heads, each `MODEL` or `NAME=MODEL`.
            device: None: a GPU if there is one.
            dtype: `float32`; `int8` on CPUs; `bfloat16` or `float16` on GPUs; `auto`: `bfloat16` on GPUs with
                instructions for it, else `float32`.
            threads: threads of the CPU; None: as many as torch uses.
            channels: as in `RunConfig`, and so are the others. Each channel of its own is a recogniser of its own.
            max_segment_s: in seconds.
            cut: `pause` or `vad`.
            skip_silence: do not compute long pauses.
            word_gap_s: in seconds.
            lm: language model of words, for a beam search; a path or URI.
            hotwords: file of words that get a bonus; a path or URI.
            beam: texts that the search keeps.
            lm_weight: of the language model.
            word_bonus: of each word.
            hotword_weight: of each hot-word.

        Raises:
            UsageError: an option is wrong; or there is no such checkpoint, or it does not fit.
            StorageError: a checkpoint could not be reached.
        """
        if channels == "split":
            raise UsageError("channels: mix, or the number of one channel: a recogniser gives one result a recording")
        if device not in (None, "cpu", "cuda"):
            raise UsageError(f"device: cpu or cuda, not {device!r}")
        config = checked(
            RunConfig,
            {
                "inputs": (".",),  # a run has these two, a recogniser does not
                "output": ".",
                "model": name,
                "classifiers": (classifiers,) if isinstance(classifiers, str | os.PathLike) else tuple(classifiers),
                "dtype": dtype,
                "threads": threads,
                "channels": channels,
                "max_segment_s": max_segment_s,
                "cut": cut,
                "skip_silence": skip_silence,
                "word_gap_s": word_gap_s,
                "lm": lm,
                "hotwords": hotwords,
                "beam": beam,
                "lm_weight": lm_weight,
                "word_bonus": word_bonus,
                "hotword_weight": hotword_weight,
            },
            {
                "model": "name",
                **{name: name for name in ("max_segment_s", "word_gap_s", "skip_silence", *DECODING)},
            },
        )
        device = device or ("cuda" if has_gpu() else "cpu")
        _check_device(device, config.dtype)
        specs = tuple(f"{task}={pinned(uri)}" for task, uri in config.tasks.items())
        return Recognizer(replace(config, model=pinned(model_uri(config.model)), classifiers=specs), device)

    def __repr__(self) -> str:
        classifiers = [f"classifiers={list(self.tasks)}"] if self.tasks else []
        dtype = ", ".join(dict.fromkeys(engine.dtype for engine in self.engines))
        parts = [repr(self._name), *classifiers, f"device={self.device!r}", f"dtype={dtype!r}"]
        return f"<Recognizer {', '.join(parts)}, threads={self.threads}>"

    @property
    def sampling_rate(self) -> int:
        """The model's sampling rate, in Hz; other audio is resampled."""
        return self._rows.audio.sample_rate

    @property
    def engines(self) -> tuple[EngineStatus, ...]:
        """What computes each encoder now: its dtype and device, and why it is not the one asked for, if it is not."""
        return tuple(encoder.engine.status() for encoder in self._heads.encoders)

    @property
    def tasks(self) -> tuple[str, ...]:
        """The names of the classifiers."""
        return tuple(task for task, _ in self._texts.classifiers)

    def transcribe(
        self, audio: Audio | Iterable[Audio], sampling_rate: int | None = None
    ) -> Transcript | list[Transcript]:
        """Transcribe one recording, or many.

        Recordings are decoded one after the other and computed in batches of `BATCH_S` seconds. They may be of any
        length; long ones are cut as runs cut them.

        Args:
            audio: a recording, or an iterable of recordings: a path or URI, an encoded file as bytes, or samples:
                int16, int32 or floats with full scale at 1, of shape (samples,) or (samples, channels), as soundfile
                returns them. Channels are mixed, unless `channels` chose one.
            sampling_rate: of the samples, in Hz. Files have their own.

        Returns:
            A result, or a list with one for each recording, in order. Bad audio is a result with an `error_code`.

        Raises:
            UsageError: an item is no audio, or samples have no sampling rate.
            StorageError: storage could not be reached, after retries.
        """
        if isinstance(audio, str | os.PathLike | Encoded | Mapping) or hasattr(audio, "__array__"):
            return self.transcribe_utterances([utterance_of(audio, sampling_rate, "audio")])[0]
        if not isinstance(audio, Iterable):
            raise UsageError(f"audio: {_type(audio)} is neither a path, bytes, an array nor a list of these")
        # All are checked before the first is computed.
        return self.transcribe_utterances(
            [utterance_of(item, sampling_rate, f"audio[{i}]") for i, item in enumerate(audio)]
        )

    def transcribe_utterances(self, utterances: Sequence[Utterance]) -> list[Transcript]:
        """The result of each utterance, in order.

        Raises:
            StorageError: storage could not be reached, after retries.
        """
        found: list[list[Segment]] = [[] for _ in utterances]
        failed: dict[int, tuple[str, str]] = {}
        warnings: dict[int, str] = {}
        rows = ((index, row) for index, item in enumerate(utterances) for row in utterance_rows(item, self._rows))
        for batch in _batches(rows):
            for (index, row), result in zip(batch, self._recognized([row for _, row in batch]), strict=True):
                if isinstance(result, Segment):
                    found[index].append(result)
                else:
                    failed.setdefault(index, result)
                if row.warning:
                    warnings.setdefault(index, row.warning)
        return [
            _joined(segments, failed.get(index), warnings.get(index), self.tasks)
            for index, segments in enumerate(found)
        ]

    def _recognized(self, batch: Sequence[ReadRow]) -> list[Segment | tuple[str, str]]:
        """For each row its segment, or its error as code and message."""
        decoded = read_rows(batch, self._rows.audio.sample_rate)
        with _TORCH_THREADS.one(self.device):
            results = self._heads.results(decoded)
        rows = pa.Table.from_struct_array(recognized_rows(decoded, results))
        rows = rows.append_column("part_id", pa.array([""] * len(rows)))  # columns of a run
        rows = rows.append_column("chunk", pa.array([0] * len(rows), pa.int32()))
        good = rows.filter(pc.is_null(rows["code"]))
        label_rows = iter(labels(good, self._texts).to_pylist())
        segments = iter([_segment(row, label_rows, self.tasks) for row in transcripts(good, self._texts).to_pylist()])
        errors = zip(rows["code"].to_pylist(), rows["message"].to_pylist(), strict=True)
        return [next(segments) if code is None else (code, message) for code, message in errors]


class _TorchThreads:
    """Torch's own threads in this process. On a CPU each pack has a thread of its own instead, while any is computed.

    The number is one of each thread, and of the process for new threads. Recognisers may compute in several threads at
    the same time: the number that the first of them found is given back to each.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._before = 0

    def number(self) -> int:
        """How many torch has when no recogniser computes."""
        with self._lock:
            return self._before if self._users else torch_threads()

    @contextlib.contextmanager
    def one(self, device: str) -> Iterator[None]:
        """On a CPU, have one."""
        if device != "cpu":
            yield
            return
        with self._lock:
            found = set_torch_threads(1)
            self._before = self._before if self._users else found
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                set_torch_threads(self._before)  # the threads of other packs have a number of their own, 1


_TORCH_THREADS: Final = _TorchThreads()


def _check_device(device: str, dtype: str) -> None:
    if device == "cuda" and not has_gpu():
        raise UsageError("device: torch finds no GPU")
    if (dtype == "int8") if device == "cuda" else (dtype in ("bfloat16", "float16")):
        where = "CPUs" if dtype == "int8" else "GPUs"
        raise UsageError(f"dtype: {dtype} is for {where}, and the device is {device}")


def _batches(rows: Iterable[tuple[int, ReadRow]]) -> Iterator[list[tuple[int, ReadRow]]]:
    """Rows in batches of `BATCH_S` seconds of audio, or `BATCH_ROWS` rows."""
    batch: list[tuple[int, ReadRow]] = []
    audio_s = 0.0
    for index, row in rows:
        if batch and (audio_s + row.audio_s > BATCH_S or len(batch) >= BATCH_ROWS):
            yield batch
            batch, audio_s = [], 0.0
        batch.append((index, row))
        audio_s += row.audio_s
    if batch:
        yield batch


def utterance_of(audio: Any, sampling_rate: int | None, where: str) -> Utterance:
    """The audio as an utterance of a corpus.

    Raises:
        NotAudioError: it is no audio; the message begins with `where`.
        UsageError: the package that serves a URI is not installed.
    """
    if isinstance(audio, Mapping):
        if not {"array", "sampling_rate"} <= audio.keys():
            raise NotAudioError(f"{where}: a mapping needs the keys array and sampling_rate, it has {sorted(audio)}")
        audio, sampling_rate = audio["array"], audio["sampling_rate"]
    if isinstance(audio, str | os.PathLike):
        try:
            uri = uris.absolute(os.fspath(audio))
        except (uris.UnknownSchemeError, uris.ImpossibleNameError) as error:
            return broken_utterance(where, str(audio), AudioError(ErrorCode.BAD_ROW, str(error)))
        return Utterance(uri, uri, ObjectOpener(uri))
    if isinstance(audio, Encoded):
        encoded = bytes(audio)
        return Utterance(where, where, lambda: encoded)
    samples = _samples(audio, where)
    rate = _rate(sampling_rate, where)
    return Utterance(where, where, lambda: _encoded(samples, rate))


def _samples(audio: Any, where: str) -> np.ndarray:
    """Samples in this machine's byte order, (samples,) or (samples, channels)."""
    if not hasattr(audio, "__array__"):
        raise NotAudioError(f"{where}: {_type(audio)} is neither a path, bytes nor an array of samples")
    try:
        samples = np.asarray(audio)
    except (RuntimeError, TypeError, ValueError) as error:  # such as torch's, of a tensor on a GPU
        raise NotAudioError(f"{where}: {_type(audio)} cannot become an array of NumPy: {error}") from error
    kind = np.dtype(np.float32) if samples.dtype == np.float16 else samples.dtype.newbyteorder("=")
    if kind.name not in _PCM:
        raise NotAudioError(f"{where}: samples are int16, int32 or floats, not {samples.dtype}")
    if samples.ndim not in (1, 2):
        raise NotAudioError(f"{where}: samples have shape (samples,) or (samples, channels), not {samples.shape}")
    if samples.ndim == 2 and _is_transposed(*samples.shape):
        raise NotAudioError(f"{where}: shape {samples.shape} is not (samples, channels): transpose it")
    return samples.astype(kind, copy=False)


def _is_transposed(samples: int, channels: int) -> bool:
    """Whether samples and channels seem exchanged. A recording may have no sample, or one, of several channels."""
    return channels > samples and (samples > 1 or channels > AudioSettings.max_channels)


def _rate(rate: Any, where: str) -> int:
    if rate is None:
        raise NotAudioError(f"{where}: samples need their rate in Hz, as sampling_rate")
    if isinstance(rate, bool) or not isinstance(rate, int | np.integer) or not 0 < rate < 2**31:
        raise NotAudioError(f"sampling_rate: {rate!r} is not a whole number of Hz above 0")
    return int(rate)


def _encoded(samples: np.ndarray, rate: int) -> bytes:
    """Samples as a WAV file: its decoding gives the same bits, and everything after it is one path.

    Raises:
        AudioError: they have no channel, or too many for a file.
    """
    file = io.BytesIO()
    container = "WAV" if samples.nbytes < MAX_WAV_BYTES else "RF64"
    try:
        soundfile.write(file, samples, rate, _PCM[samples.dtype.name], format=container)
    except soundfile.LibsndfileError as error:
        message = f"samples of shape {samples.shape} at {rate} Hz cannot be a file: {error.error_string}"
        raise AudioError(ErrorCode.UNSUPPORTED, message) from error
    return file.getvalue()


def _type(value: object) -> str:
    return f"a {type(value).__name__}"


def _segment(row: dict[str, Any], label_rows: Iterator[dict[str, Any]], tasks: Sequence[str]) -> Segment:
    scored = {}
    for task in tasks:
        label_row = next(label_rows)
        scored[task] = tuple(Label(top["label"], top["score"]) for top in label_row["top_k"])
    return Segment(
        row["start_s"],
        row["duration_s"],
        row["text"],
        tuple(Word(**word) for word in row["words"]),
        row["confidence"],
        scored,
    )


def _joined(
    segments: Sequence[Segment], failed: tuple[str, str] | None, warning: str | None, tasks: Sequence[str]
) -> Transcript:
    code, message = failed or (None, None)
    return Transcript(
        text=" ".join(segment.text for segment in segments if segment.text),
        words=tuple(word for segment in segments for word in segment.words),
        confidence=_mean_confidence(segments),
        labels={task: _mean_labels(segments, task) for task in tasks} if segments else {},
        duration_s=math.fsum(segment.duration_s for segment in segments),
        segments=tuple(segments),
        error_code=None if code is None else ErrorCode(code),
        error=message,
        warning=warning,
    )


def _mean_confidence(segments: Sequence[Segment]) -> float | None:
    known = [(len(segment.text) or 1, segment.confidence) for segment in segments if segment.confidence is not None]
    if len(known) < 2:
        return known[0][1] if known else None
    logs = math.fsum(length * math.log(max(confidence, 1e-30)) for length, confidence in known)
    return math.exp(logs / sum(length for length, _ in known))


def _mean_labels(segments: Sequence[Segment], task: str) -> tuple[Label, ...]:
    """The mean scores of the labels by the lengths of the segments. Only the best labels of each segment are known."""
    if len(segments) == 1:
        return segments[0].labels[task]
    total = math.fsum(segment.duration_s for segment in segments)
    sums: dict[str, float] = {}
    for segment in segments:
        for label, score in segment.labels[task]:
            sums[label] = sums.get(label, 0.0) + score * segment.duration_s / total
    return tuple(Label(label, score) for label, score in sorted(sums.items(), key=lambda item: -item[1]))
