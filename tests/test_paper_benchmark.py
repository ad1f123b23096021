"""The benchmark against wav2vec 2.0: its methods return the frames of each clip, and base is the published model."""

from __future__ import annotations

import torch
import transformers

from benchmarks import paper
from benchmarks.workload import SIZES, waveforms
from sewd_model import SEWDConfig
from tests.support.checkpoints import SMALL


def test_every_method_is_measured_and_returns_the_frames_of_each_clip():
    clips = waveforms("librispeech", 3)
    methods = paper.make_methods(SMALL, {"peer": (64, 16)}, threads=1)
    with torch.inference_mode():
        logits = {name: method(clips) for name, method in methods.items()}
    frames = [SEWDConfig.from_dict(SMALL).num_frames(len(clip)) for clip in clips]
    assert {name: [tuple(of_clip.shape) for of_clip in of_method] for name, of_method in logits.items()} == {
        name: [(length, 32) for length in frames] for name in ("peer", "SEW-D", "SEW-D, packed")
    }
    for packed, alone in zip(logits["SEW-D, packed"], logits["SEW-D"], strict=True):
        torch.testing.assert_close(packed, alone, rtol=0, atol=1e-4)

    figures = paper.measure(methods, ["peer"], clips, rounds=2)
    assert figures["number"] == 3
    assert figures["methods"]["peer"]["times_as_fast_as"] == {"peer": 1.0}
    assert all(len(seconds) == 2 and min(seconds) > 0 for seconds in figures["rounds_s"].values())


def test_every_size_has_peers_and_base_is_the_published_model():
    assert set(paper.PEERS) == set(SIZES)
    assert paper.PEERS["base+"] == paper.BASE
    base = paper.wav2vec2(*paper.BASE["wav2vec 2.0 base"])
    assert base.config.to_diff_dict() == transformers.Wav2Vec2Config().to_diff_dict()
    assert sum(parameter.numel() for parameter in base.parameters()) == 94_396_320
