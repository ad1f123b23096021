"""The mean of the weights of several moments of trainings, which is better than each of them.

    python benchmarks/bundled/average.py OUT MODEL [SHARE=]MOMENT...

MODEL is a directory whose other files OUT receives; a MOMENT, of the same training or of another that began with the
same weights, is one too, or a checkpoint of `sewd finetune` (`checkpoints/step-*.pt`), and counts as SHARE, or 1.

Sources: Izmailov et al. 2018 (arXiv 1803.05407); Wortsman et al. 2022 (arXiv 2203.05482).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import safetensors.torch
import torch

from pipeline.training_model import merged_state, save_model, start_from_checkpoint


def main() -> None:
    """Average."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", metavar="OUT")
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("moments", nargs="+", metavar="[SHARE=]MOMENT")
    places = parser.parse_args()
    start = start_from_checkpoint(places.model, labels=())
    mean = {key: torch.zeros_like(tensor) for key, tensor in merged_state(start.model).items()}
    shares = [shared(moment) for moment in places.moments]
    for share, path in shares:
        for key, tensor in weights(path).items():
            mean[key] += tensor * (share / sum(share for share, _ in shares))
    save_model(places.out, mean, start.model.config, start.tokenizer, start.features)


def shared(moment: str) -> tuple[float, Path]:
    """`[SHARE=]MOMENT`."""
    share, _, path = moment.rpartition("=")
    return float(share or 1), Path(path)


def weights(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a moment under the keys of the Hugging Face layout."""
    if path.is_dir():
        return safetensors.torch.load_file(path / "model.safetensors")
    state = torch.load(path, map_location="cpu", weights_only=True)["model"]
    return {key.partition(".")[2]: tensor for key, tensor in state.items()}


if __name__ == "__main__":
    main()
