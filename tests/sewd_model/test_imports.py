"""The model package imports neither the pipeline nor Ray."""

import ast
import subprocess
import sys
from pathlib import Path

import sewd_model

ALLOWED = {"httpx2", "huggingface_hub", "torch", "numpy", "safetensors", "fsspec", "sewd_model"}


def test_importing_the_package_loads_no_ray_and_no_pipeline():
    code = "import sys, sewd_model; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    root = Path(sewd_model.__file__).parent.parent
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True, timeout=120
    )
    loaded = set(result.stdout.split())
    assert "sewd_model" in loaded
    assert not loaded & {"ray", "pipeline", "jobs", "transformers", "pyarrow"}


def test_sources_import_only_the_allowed_packages():
    imported = set()
    for path in Path(sewd_model.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0
                imported.add(node.module.split(".")[0])
    assert imported - set(sys.stdlib_module_names) == ALLOWED
