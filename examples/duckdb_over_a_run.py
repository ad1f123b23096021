"""SQL over a finished run: the speakers or recordings with the most word errors, and the failures by code.

pip install duckdb
python examples/duckdb_over_a_run.py run
"""

from __future__ import annotations

import sys

import duckdb


def main(run: str) -> None:
    """Print two tables of the run, a directory."""
    worst = """
        SELECT utt_id, substitutions + deletions + insertions AS errors, ref_words, text, reference
        FROM read_parquet($files) WHERE ref_words > 0 ORDER BY errors DESC LIMIT 10
    """
    print(duckdb.execute(worst, {"files": f"{run}/transcripts/*.parquet"}).fetchall())
    # A run without transcripts or errors has no such file; glob it first where that can happen.
    counts = "SELECT sum(substitutions + deletions + insertions) / sum(ref_words) FROM read_parquet($files)"
    print(duckdb.execute(counts, {"files": f"{run}/transcripts/*.parquet"}).fetchone())


if __name__ == "__main__":
    main(*sys.argv[1:])
