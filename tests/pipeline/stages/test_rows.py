"""The steps of a part: they resume at every position, and skipped utterances become error rows."""

from __future__ import annotations

import tarfile

import pytest

from pipeline.audio.decode import AudioSettings
from pipeline.errors import ErrorCode
from pipeline.stages.rows import RowSettings, part_steps
from pipeline.stages.steps import START, Position, Skipped
from tests.support import corpora


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Clips of 3, 1 and 9 s, and one that is not audio: 2, 1 and 4 rows of at most 2.5 s, and an error row."""
    folder = tmp_path_factory.mktemp("clips")
    for name, seconds in (("a", 3), ("b", 1), ("d", 9)):
        corpora.write_audio(folder / f"{name}.wav", seconds, seed=seconds)
    (folder / "c.wav").write_text("no audio")
    return folder


def steps_of(source, start=START, skipped=()):
    (part,) = corpora.parts_of(source)
    settings = RowSettings(AudioSettings(max_segment_s=2.9), min_samples=720)
    return list(part_steps(part, settings, start, {skip.position.utterance: skip for skip in skipped}))


def comparable(steps):
    """The steps with samples as bytes: arrays have no single truth value for `==`."""
    return [
        (
            step.next,
            step.size,
            step.where,
            step.row and vars(step.row) | {"samples": None if step.row.samples is None else step.row.samples.tobytes()},
        )
        for step in steps
    ]


def ids(steps):
    """The utterance and the error code of each row."""
    rows = [step.row for step in steps if step.row is not None]
    return [(row.utt_id.partition("#")[0], row.error and row.error.code) for row in rows]


def assert_each_position_can_be_resumed(source, steps, skipped=()):
    for done, step in enumerate(steps, 1):
        assert comparable(steps_of(source, step.next, skipped)) == comparable(steps[done:])


def test_from_any_position_the_remaining_steps_follow(clips):
    steps = steps_of(clips)
    assert [step.next for step in steps] == sorted(step.next for step in steps)
    assert sum(step.size for step in steps) == sum(path.stat().st_size for path in clips.iterdir())
    assert_each_position_can_be_resumed(clips, steps)


def test_a_skipped_utterance_ends_with_an_error_row_at_its_position(clips):
    undisturbed = ids(steps_of(clips))
    skipped = [Skipped(Position(0, 0), ErrorCode.CRASHED, "died"), Skipped(Position(3, 2), ErrorCode.HUNG, "hung")]
    steps = steps_of(clips, skipped=skipped)

    rest = [("b", None), ("c", "UNDECODABLE"), ("d", None), ("d", None)]
    assert ids(steps) == [("a", "CRASHED"), *rest, ("d", "HUNG")]
    assert undisturbed[undisturbed.index(("b", None)) :][:4] == rest
    assert_each_position_can_be_resumed(clips, steps, skipped)


BEFORE_THE_SECOND = Skipped(Position(1, -1), ErrorCode.CRASHED, "died")


def test_a_file_that_cannot_be_opened_is_the_only_one_lost(clips):
    undisturbed = ids(steps_of(clips))
    steps = steps_of(clips, skipped=[BEFORE_THE_SECOND])
    assert ids(steps) == [row if row != ("b", None) else ("b", "CRASHED") for row in undisturbed]
    assert undisturbed.count(("b", None)) == 1
    assert_each_position_can_be_resumed(clips, steps, [BEFORE_THE_SECOND])


def test_a_container_ends_with_an_error_row_where_reading_on_kills_the_process(clips, tmp_path):
    shard = tmp_path / "shard.tar"
    with tarfile.open(shard, "w") as tar:
        for name in ("a", "b", "d"):
            tar.add(clips / f"{name}.wav", f"{name}.wav")
    steps = steps_of(shard, skipped=[BEFORE_THE_SECOND])
    assert ids(steps) == [*[row for row in ids(steps_of(clips)) if row[0] == "a"], ("shard", "CRASHED")]
    assert steps_of(shard, steps[-1].next, [BEFORE_THE_SECOND]) == []


def test_the_reference_of_a_recording_is_in_the_row_of_its_first_segment(tmp_path):
    for name, seconds in (("long", 6), ("short", 1)):
        corpora.write_audio(tmp_path / f"{name}.wav", seconds, seed=seconds)
    (tmp_path / "bad.wav").write_text("no audio")
    for name in ("long", "short", "bad"):
        (tmp_path / f"{name}.txt").write_text(f"said in {name}")
    rows = [step.row for step in steps_of(tmp_path) if step.row is not None]
    found = [(row.utt_id.partition("#")[0], row.reference, row.recording_reference) for row in rows]
    assert found[0] == ("bad", "said in bad", None)
    assert found[1:4] == [("long", None, "said in long"), ("long", None, None), ("long", None, None)]
    assert found[-1] == ("short", "said in short", None)
