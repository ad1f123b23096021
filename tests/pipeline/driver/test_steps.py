"""What a run does before its first progress is named, in order."""

import numpy as np
import soundfile

from pipeline.config import make_config
from pipeline.driver.transcribe import transcribe
from tests.support.without_ray import without_ray


def test_the_steps_before_the_first_progress_are_named(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(16_000, np.float32), 16_000)
    config = make_config(inputs=(str(tmp_path / "a.wav"),), output=str(tmp_path / "run"))
    seen = []
    with without_ray():
        transcribe(config, on_progress=lambda progress: seen.append(progress.share), on_step=seen.append)
        assert seen == ["reading the model", "planning", "starting Ray", 0.0, 1.0]
        seen.clear()
        transcribe(config, on_step=seen.append)
    assert seen == ["reading the model", "planning"], "a run that is done starts nothing"
