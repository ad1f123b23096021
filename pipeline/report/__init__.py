"""One HTML page, Markdown text or JSON object about a run."""
