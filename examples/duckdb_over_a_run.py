"""SQL over a run: the utterances with the most word errors, the word error rate, and the failures by code.

pip install duckdb
python examples/duckdb_over_a_run.py run
"""

from __future__ import annotations

import sys
from pathlib import Path

import duckdb


def main(run: str) -> None:
    """Print three tables of the run, a directory."""
    worst = """
        SELECT utt_id, substitutions + deletions + insertions AS errors, ref_words, text, reference
        FROM read_parquet($files) WHERE ref_words > 0 ORDER BY errors DESC LIMIT 10
    """
    print(duckdb.execute(worst, {"files": f"{run}/transcripts/*.parquet"}).fetchall())
    rate = "SELECT sum(substitutions + deletions + insertions) / sum(ref_words) FROM read_parquet($files)"
    print(duckdb.execute(rate, {"files": f"{run}/transcripts/*.parquet"}).fetchone())
    if any(Path(run, "errors").glob("*.parquet")):  # a run without failed rows has no such file
        codes = "SELECT code, count(*) FROM read_parquet($files) GROUP BY code ORDER BY code"
        print(duckdb.execute(codes, {"files": f"{run}/errors/*.parquet"}).fetchall())


if __name__ == "__main__":
    main(*sys.argv[1:])
