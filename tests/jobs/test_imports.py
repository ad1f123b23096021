"""What a verb loads, which is most of what a user waits for: no package that it does not need."""

import subprocess
import sys

import numpy as np
import pytest
import soundfile

from pipeline.config import make_config
from pipeline.stages.models import load_model_info
from sewd_model import SEWDConfig, SEWDForCTC, SEWDForSequenceClassification
from sewd_model.files import BUNDLED
from tests.support import runs

NEVER = {"torch", "matplotlib", "jinja2", "transformers", "huggingface_hub"}

# Runs the console script, and prints what it has loaded by its end, or when it would connect to Ray.
SCRIPT = """
import os, sys
def loaded(*_):
    print("\\nLOADED", *sorted({name.partition(".")[0] for name in sys.modules}), flush=True)
    os._exit(0)
if sys.argv[1] == "transcribe":
    import pipeline.driver.transcribe
    pipeline.driver.transcribe.connect = loaded
from jobs.main import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
loaded()
"""


def loaded_by(*words) -> set[str]:
    command = [sys.executable, "-c", SCRIPT, *map(str, words)]
    result = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    assert "\nLOADED" in result.stdout, result.stderr
    return set(result.stdout.rpartition("\nLOADED")[2].split())


def test_help_loads_the_command_line_only():
    assert not loaded_by("--help") & (NEVER | {"ray", "pyarrow", "numpy", "pydantic", "scipy", "pandas"})


@pytest.mark.parametrize(
    ("words", "others"),
    [(["status"], {"ray", "scipy"}), (["evaluate"], {"ray"})],
    ids=["status", "evaluate"],
)
def test_reading_a_run_loads_neither_ray_nor_what_draws_or_computes(tmp_path, words, others):
    runs.write_run(tmp_path / "run", runs.transcripts(runs.random_rows(50)))
    assert not loaded_by(*words, tmp_path / "run") & (NEVER | others)


def test_the_driver_loads_no_torch(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(16_000, np.float32), 16_000)
    classifier = f"keyword={BUNDLED}"
    words = ("transcribe", tmp_path / "a.wav", "--output", tmp_path / "run", "--classifier", classifier)
    assert not loaded_by(*words) & (NEVER | {"scipy"})


def test_what_the_driver_reads_of_a_checkpoint_is_what_its_models_have():
    ctc = SEWDForCTC.from_pretrained(BUNDLED).config
    classifier = SEWDForSequenceClassification.from_pretrained(BUNDLED).config
    info = load_model_info(make_config(inputs=("a",), output="b", classifiers=(f"keyword={BUNDLED}",)))
    assert SEWDConfig.from_pretrained(BUNDLED) == ctc == classifier
    assert info.acoustics.hop_length == ctc.hop_length
    assert info.min_samples == max(ctc.min_samples, classifier.min_samples)
    assert info.classifiers == (("keyword", tuple(classifier.id2label.values())),)
