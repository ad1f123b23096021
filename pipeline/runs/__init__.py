"""A run on storage: record, plan, commits, ledger, compaction, lease, verification. Knows no Ray."""
