"""The recogniser as a stage of a Ray Data pipeline of your own: files as rows in, the same rows with texts out.

    python examples/ray_pipeline.py recordings/

Each text is what the model gives for that recording alone, whatever else is in its batch; a file that cannot be read
has an error code. For commits, resumption and corpora that kill decoders use `pipeline.transcribe`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import ray

import pipeline


def main(audio: str) -> None:
    """Print path, text and error code of each WAV, FLAC and MP3 file below `audio`."""
    paths = sorted(str(path) for path in Path(audio).rglob("*") if path.suffix in (".wav", ".flac", ".mp3"))
    recordings = ray.data.read_binary_files(paths, include_paths=True)  # columns: bytes, path
    texts = recordings.map_batches(
        pipeline.TableRecognizer,
        fn_constructor_kwargs={"name": "bundled", "audio": "bytes", "threads": 1},
        batch_format="pyarrow",
        batch_size=16,
        concurrency=1,  # recognisers; num_gpus=1 gives each a GPU
    ).drop_columns(["bytes"])
    for row in texts.iter_rows():
        print(f"{row['path']}: {row['text']!r} {row['error_code'] or ''}")


if __name__ == "__main__":
    main(*sys.argv[1:])
