"""Tokens that a model reads into noise: CTC models trained on speech spell something where nobody speaks.

In a row with long pauses, which are not computed (`pipeline.audio.silence`), they are dropped from what remains of
these pauses, and from shorter ones. A row without a long pause has every token of the model.
"""

from __future__ import annotations

import numpy as np

from pipeline.audio.silence import LEVEL_S, steady_noise
from sewd_model import GreedyPath


def without_noise(path: GreedyPath, levels: np.ndarray, frame_s: float, delimiter: int | None) -> GreedyPath:
    """Return the path without the tokens that lie in steady noise, a quarter of a second or more from any sound.

    Args:
        path: of one utterance.
        levels: (n,) of the utterance, see `pipeline.audio.silence.levels`.
        frame_s: seconds per frame of the path.
        delimiter: id of the word delimiter, which is kept: words on both sides of a pause are two.
    """
    if not len(path.token_ids) or not (noise := steady_noise(levels)).any():
        return path
    sound = np.concatenate(([0], np.cumsum(~noise)))  # levels that are no noise, before each

    def before(frames: np.ndarray) -> np.ndarray:
        return np.asarray(sound[np.clip(np.rint(frames * frame_s / LEVEL_S).astype(np.int64), 0, len(noise))])

    keep = (before(path.end_frames) > before(path.start_frames)) | (path.token_ids == delimiter)
    return path.take(keep)
