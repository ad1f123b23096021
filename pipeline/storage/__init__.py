"""Storage by URI: reading, writing and listing objects, with retries, on local disks and object stores.

Contract of every module here: a missing object is `FileNotFoundError`; any other failure of storage is retried with
back-off and then raised as `StorageError`; a URI that cannot work is `UsageError`. The modules, from the ground up:
`deadline` (ends a hanging process), `retry` (which errors are transient), `uris` (paths and file systems), `objects`
(read, write, list, delete), `globs` (patterns), `checkpoints` (digest and local copy of a model), `parquet` (tables as
bytes).
"""
