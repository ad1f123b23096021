"""The process that transcribes a corpus: one Ray Data execution after the other, its metrics and its watchdog."""
