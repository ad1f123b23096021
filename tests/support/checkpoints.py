"""Checkpoints written by transformers, with random weights, which the project must read unchanged."""

from __future__ import annotations

import json
import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers

LETTERS = list("ETAONIHSRDLUMWCFGYPBVK'XJQZ")
VOCAB = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "|": 4} | {c: i + 5 for i, c in enumerate(LETTERS)}
TOKENS = {index: token for token, index in VOCAB.items()}

SMALL_CONV = (8, 16, 16, 16, 16, 32, 32, 32, 32, 32, 32, 32, 32)
# The smallest configuration that has every part, for tests of the pipeline.
SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "conv_dim": SMALL_CONV,
    "num_conv_pos_embeddings": 31,
    "num_conv_pos_embedding_groups": 4,
}
# The sizes of the published sew-d-tiny.
SEW_D_TINY = {
    "hidden_size": 384,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "intermediate_size": 1536,
    "num_conv_pos_embeddings": 31,
}


def _randomize(model: torch.nn.Module, seed: int) -> None:
    """Change the initial values, with which most frames of a random model have the same best token."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() == 1:
                parameter.add_(0.1 * noise)
            elif name.endswith(("lm_head.weight", "classifier.weight")):
                parameter.copy_(noise)


def write_ctc(directory: Path, sizes: dict, seed: int = 0) -> Path:
    """Write a SEWDForCTC checkpoint with its vocabulary and preprocessor; return its directory."""
    torch.manual_seed(seed)
    model = transformers.SEWDForCTC(transformers.SEWDConfig(vocab_size=len(VOCAB), **sizes))
    _randomize(model, seed)
    model.save_pretrained(directory)
    (directory / "vocab.json").write_text(json.dumps(VOCAB))
    transformers.Wav2Vec2CTCTokenizer(str(directory / "vocab.json")).save_pretrained(directory)
    transformers.Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(directory)
    return directory


def write_classifier(
    directory: Path, sizes: dict, seed: int = 1, backbone: Path | None = None, labels: int = 6
) -> Path:
    """Write a SEWDForSequenceClassification checkpoint; return its directory.

    Args:
        directory: where it is written.
        sizes: fields of the configuration.
        seed: of the random weights.
        backbone: a CTC checkpoint whose backbone it gets; None: a random one.
        labels: number of classes, named word0, word1, ...
    """
    torch.manual_seed(seed)
    model = transformers.SEWDForSequenceClassification(transformers.SEWDConfig(num_labels=labels, **sizes))
    _randomize(model, seed)
    if backbone is not None:
        model.sew_d.load_state_dict(transformers.SEWDForCTC.from_pretrained(backbone).sew_d.state_dict())
    model.config.id2label = {index: f"word{index}" for index in range(labels)}
    model.save_pretrained(directory)
    transformers.Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(directory)
    return directory
