"""The fingerprint of a run: everything that its rows depend on. A resume must match it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from pipeline.config import DECODING, RunConfig, column_names
from pipeline.decoding.settings import DecoderSettings
from pipeline.schemas import SCHEMA_VERSION
from pipeline.settings import default_of
from pipeline.storage.checkpoints import checkpoint_digest
from sewd_model.hub import hub_name

WORD_TIMES: Final = "sound"
"""How words get their times, see `pipeline.stages.word_ends`."""


def fingerprint(
    config: RunConfig, commits: Mapping[str, str] | None = None, decoder: DecoderSettings | None = None
) -> dict[str, Any]:
    """Everything that a run's rows depend on, by name, so that a resume can report what differs.

    Each checkpoint has a digest of its own.

    Args:
        config: of the run.
        commits: of the checkpoints that are on the hub, see `pipeline.runs.hub_commits`.
        decoder: `config.decoder()`; None: it is made here.

    Raises:
        UsageError: there is no checkpoint at one of the URIs.
        StorageError: a checkpoint could not be read.
    """
    return {
        "schema": SCHEMA_VERSION,
        "inputs": list(config.inputs),
        "limit": config.limit,
        "channels": config.channels,
        "max_segment_s": config.max_segment_s,
        "cut": config.cut,
        "skip_silence": config.skip_silence,
        "word_gap_s": config.word_gap_s,
        "word_times": WORD_TIMES,
        "normalizer": config.normalizer,
        "chunk_s": config.chunk_s,
        "chunk_rows": config.chunk_rows,
        "model": checkpoint_digest(config.model),
        "classifiers": {task: checkpoint_digest(uri) for task, uri in config.tasks.items()},
        "dtype": config.dtype,
        **({"commits": dict(commits)} if commits else {}),
        **({"columns": column_names(config.columns)} if config.columns else {}),
        **({"input_format": config.input_format} if config.input_format else {}),
        **({"allow_any_path": True} if config.allow_any_path else {}),
        **({"keep_posteriors": True} if config.keep_posteriors else {}),
        **(decoder or config.decoder()).fingerprint(),
    }


def redecoding_fingerprint(
    source: Mapping[str, Any], config: RunConfig, decoder: DecoderSettings, digest: str
) -> dict[str, Any]:
    """The fingerprint of a run that is made of the posteriors of another.

    Args:
        source: fingerprint of the run that keeps them.
        config: of the new run.
        decoder: `config.decoder()`.
        digest: of the rows of the source, see `pipeline.runs.redecoding.source_digest`.
    """
    kept = {name: value for name, value in source.items() if name not in ("keep_posteriors", *DECODING)}
    texts = {"normalizer": config.normalizer, "word_gap_s": config.word_gap_s, "word_times": WORD_TIMES}
    return {**kept, **texts, **decoder.fingerprint(), "source": digest}


def has_earlier_rules(stored: Mapping[str, Any]) -> bool:
    """Whether a run was begun by version 0.1.0; its remaining rows are made in the same way.

    That version computed silence, broke no words and left their ends as they were; it named rows of Parquet files by
    base names, took members of a shard for one sample only if their names differ in the last extension, and did not
    report members that belong to no audio.
    """
    return "word_gap_s" not in stored


def has_late_starts(stored: Mapping[str, Any]) -> bool:
    """Whether words of a run begin with their first tokens, as they did before `WORD_TIMES`; the rest do, too."""
    return "word_times" not in stored


def cut_of(stored: Mapping[str, Any]) -> str:
    """How a run cuts long recordings: a name of `pipeline.audio.decode.CUTS`."""
    return str(stored.get("cut", "quietest"))


def by_loaded_weights(stored: Mapping[str, Any], requested: Mapping[str, Any], config: RunConfig) -> Mapping[str, Any]:
    """The stored fingerprint of a run of version 0.1.0 from the hub as this version makes it, where it is the same.

    That version recorded no commits, and its digests cover the weights in every format that a commit has. A digest that
    covers the same of the requested commit is replaced by that of the weights that are loaded.

    Args:
        stored: of the run.
        requested: of `config`, with its commits.
        config: the request, with the commits of its checkpoints.

    Raises:
        UsageError, StorageError: see `pipeline.storage.checkpoints.checkpoint_digest`.
    """

    def now(uri: str, before: str | None, loaded: str | None) -> str | None:
        is_other = before is not None and before != loaded and hub_name(uri) is not None
        return loaded if is_other and checkpoint_digest(uri, every_copy=True) == before else before

    heads, wanted = stored.get("classifiers") or {}, requested["classifiers"]
    tasks = config.tasks
    found = {
        **stored,
        "model": now(config.model, stored.get("model"), requested["model"]),
        "classifiers": {task: now(tasks.get(task, ""), heads[task], wanted.get(task)) for task in heads},
    }
    is_same = found["model"] == stored.get("model") and found["classifiers"] == heads
    return stored if is_same else {**found, "commits": requested["commits"]}


def dtype_of(stored: Mapping[str, Any]) -> str:
    """The number format that a run computes in: a value of `RunConfig.dtype`."""
    return str(stored.get("dtype", "float32"))  # versions that computed in float32 only have no entry


def differences(stored: Mapping[str, Any], requested: Mapping[str, Any]) -> list[str]:
    """`name: stored -> requested` for every entry in which two fingerprints differ.

    The commits of checkpoints are not compared: what matters of them is in the digests. A commit that changes a README
    changes no row.
    """
    if "dtype" in requested:
        stored = {**stored, "dtype": dtype_of(stored)}
    # float32 was the default: a run of an earlier version is resumed in it, see `dtype_of`.
    if (stored.get("dtype"), requested.get("dtype")) == ("float32", "auto"):
        requested = {**requested, "dtype": "float32"}
    if "cut" in requested:  # runs without an entry are resumed with the cuts of their version, see `cut_of`
        stored = {"cut": default_of(RunConfig, "cut"), **stored}
    if "word_times" in requested:  # as for cuts, see `has_late_starts`
        stored = {"word_times": requested["word_times"], **stored}
    if has_earlier_rules(stored):
        stored = {**stored, **{name: requested.get(name) for name in ("skip_silence", "word_gap_s")}}
    return [
        f"{name}: {stored.get(name)} -> {requested.get(name)}"
        for name in dict.fromkeys((*stored, *requested))
        if stored.get(name) != requested.get(name) and name != "commits"
    ]
