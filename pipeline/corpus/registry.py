"""The input layouts that there are. To add one, write a module of `pipeline.corpus.layouts` and list it here."""

from __future__ import annotations

from types import MappingProxyType

from pipeline.corpus.layout import Layout
from pipeline.corpus.layouts.files import FILES
from pipeline.corpus.layouts.manifest import MANIFEST
from pipeline.corpus.layouts.parquet import PARQUET
from pipeline.corpus.layouts.table import TABLE
from pipeline.corpus.layouts.tar import TAR
from pipeline.corpus.layouts.tar_rows import TAR_ROWS

# The first that claims an object has it.
LAYOUTS = MappingProxyType({layout.kind: layout for layout in (TAR, PARQUET, FILES, TABLE, MANIFEST, TAR_ROWS)})


def layout_of(uri: str) -> Layout | None:
    """The layout of an object, by its URI; None if no layout claims it."""
    for layout in LAYOUTS.values():
        if layout.claims(uri):
            return layout
    return None
