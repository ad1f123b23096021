"""The trained model as it lies in the package: both heads in one file, float16.

python benchmarks/bundled/bundle.py MODEL OUT
"""

from __future__ import annotations

import argparse

from pipeline.training.model import merged_state, save_model, start_from_checkpoint


def main() -> None:
    """Convert."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("out", metavar="OUT")
    places = parser.parse_args()
    start = start_from_checkpoint(places.model, labels=())
    model = start.model
    save_model(places.out, merged_state(model), model.config, start.tokenizer, start.features, "float16")


if __name__ == "__main__":
    main()
