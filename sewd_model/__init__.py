"""SEW-D speech models (arXiv 2109.06870) in plain PyTorch: model, checkpoints, features, CTC.

It depends on torch, numpy, safetensors and fsspec, and contains nothing about clusters, audio files or jobs.
Checkpoints have the Hugging Face layout, unchanged:

    model = SEWDForCTC.from_pretrained(directory_or_uri)
    features = FeatureExtractor.from_pretrained(directory_or_uri)
    tokenizer = CTCTokenizer.from_pretrained(directory_or_uri)
    output = model(*features.pad([waveform]))
    path = greedy_path(output.logits[0, : output.num_frames[0]], model.blank, tokenizer.drop_ids)
    text = tokenizer.text(path.token_ids)
"""

import importlib
from typing import TYPE_CHECKING, Any

from sewd_model.config import InputTooShortError, SEWDConfig
from sewd_model.ctc import CTCTokenizer, Decoded, GreedyPath, Word, greedy_path, split_at_gaps, words
from sewd_model.engine_status import EngineStatus
from sewd_model.files import CheckpointError

if TYPE_CHECKING:
    from sewd_model.checkpoint import backbone_digest, read_state_dict
    from sewd_model.engines import Engine, load_engine
    from sewd_model.features import FeatureExtractor
    from sewd_model.model import (
        BaseOutput,
        HeadOutput,
        Padding,
        SEWDForCTC,
        SEWDForSequenceClassification,
        SEWDModel,
    )
    from sewd_model.packed.cpu import PackedModel, PackedOutput
    from sewd_model.processor import Processor

__all__ = [
    "BaseOutput",
    "CTCTokenizer",
    "CheckpointError",
    "Decoded",
    "Engine",
    "EngineStatus",
    "FeatureExtractor",
    "GreedyPath",
    "HeadOutput",
    "InputTooShortError",
    "PackedModel",
    "PackedOutput",
    "Padding",
    "Processor",
    "SEWDConfig",
    "SEWDForCTC",
    "SEWDForSequenceClassification",
    "SEWDModel",
    "Word",
    "backbone_digest",
    "greedy_path",
    "load_engine",
    "read_state_dict",
    "split_at_gaps",
    "words",
]

# Imported on first use: loading torch takes seconds, which a process that only turns tokens into words can save.
_MODULES = {
    "BaseOutput": "model",
    "Engine": "engines",
    "FeatureExtractor": "features",
    "HeadOutput": "model",
    "PackedModel": "packed.cpu",
    "PackedOutput": "packed.cpu",
    "Padding": "model",
    "Processor": "processor",
    "SEWDForCTC": "model",
    "SEWDForSequenceClassification": "model",
    "SEWDModel": "model",
    "backbone_digest": "checkpoint",
    "load_engine": "engines",
    "read_state_dict": "checkpoint",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(f"sewd_model.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
