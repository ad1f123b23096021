"""The GPUs of this machine: torch's own count, and torch is loaded only where there may be one."""

import subprocess
import sys
import types

import pytest
import torch

from pipeline.cluster import local_machine
from pipeline.cluster.local_machine import local_gpus


def test_the_count_is_that_of_torch():
    assert local_gpus() == torch.cuda.device_count()


def test_what_torch_is_built_for_is_read_without_loading_it():
    code = (
        "import sys; from pipeline.cluster.local_machine import _torch_version; version = _torch_version();"
        "assert 'torch' not in sys.modules; import torch;"
        "assert (version.cuda, version.hip) == (torch.version.cuda, torch.version.hip)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.parametrize(
    ("cuda", "hip", "has_driver", "count"),
    [
        (None, None, True, 0),
        ("13.0", None, False, 0),
        ("13.0", None, True, 3),
        (None, "6.4", False, 3),
    ],
    ids=["built for CPUs", "no driver", "CUDA", "ROCm"],
)
def test_torch_is_asked_where_there_may_be_gpus(monkeypatch, cuda, hip, has_driver, count):
    monkeypatch.setattr(local_machine, "_torch_version", lambda: types.SimpleNamespace(cuda=cuda, hip=hip))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    libc = "libc.so.6" if has_driver else "libdoes-not-exist.so.1"
    monkeypatch.setattr(local_machine, "_CUDA_DRIVER", libc)
    assert local_gpus() == count
