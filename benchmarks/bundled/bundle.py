"""Write a trained model as the package ships it: both heads in one file, in float16.

python benchmarks/bundled/bundle.py MODEL OUT
"""

from __future__ import annotations

import argparse

from pipeline.training.model import merged_state, save_model, start_from_checkpoint


def main() -> None:
    """Convert MODEL."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("out", metavar="OUT")
    arguments = parser.parse_args()
    start = start_from_checkpoint(arguments.model, labels=())
    model = start.model
    save_model(arguments.out, merged_state(model), model.config, start.tokenizer, start.features, "float16")


if __name__ == "__main__":
    main()
