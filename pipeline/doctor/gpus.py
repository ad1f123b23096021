"""GPUs: whether torch can use those that the machine has, and whether packed batches work on them."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import torch

from pipeline.doctor.check import Check, failure, ok, warning
from sewd_model import SEWDForCTC, load_engine
from sewd_model.files import BUNDLED

PCI_DEVICES: Final = Path("/sys/bus/pci/devices")
_NVIDIA: Final = "0x10de"
_DISPLAY: Final = "0x03"  # classes of devices that draw or compute


def gpu_checks(pci: Path = PCI_DEVICES) -> list[Check]:
    """A line for each GPU that torch can use; else one that says why there is none.

    Args:
        pci: where the kernel lists the devices of the machine.
    """
    count = torch.cuda.device_count()
    if count:
        return [_engine(index) for index in range(count)]
    present = _nvidia_devices(pci)
    if not present:
        return [ok("GPU", "none: the model computes on CPUs")]
    found = f"{present} NVIDIA GPU{'s' * (present > 1)}"
    if torch.version.cuda is None:
        return [
            warning(
                "GPU",
                f"{found}, but torch {torch.__version__} is built for CPUs: runs compute on CPUs",
                "install the CUDA build of torch (https://pytorch.org/get-started)",
            )
        ]
    return [
        failure(
            "GPU",
            f"{found}, but torch {torch.__version__} for CUDA {torch.version.cuda} can use none: the driver is missing "
            "or too old, or the container was started without it",
            "install NVIDIA's driver until `nvidia-smi` lists the GPU; in a container: docker run --gpus all",
        )
    ]


def _nvidia_devices(pci: Path) -> int:
    def content(file: Path) -> str:
        return file.read_text().strip() if file.is_file() else ""

    devices = pci.iterdir() if pci.is_dir() else ()
    return sum(content(d / "vendor") == _NVIDIA and content(d / "class").startswith(_DISPLAY) for d in devices)


def _engine(index: int) -> Check:
    """Load the bundled model on a GPU, which compares packed batches with the reference model there."""
    name = f"GPU {index}"
    try:
        device = torch.device("cuda", index)
        status = load_engine([SEWDForCTC.from_pretrained(BUNDLED).eval()], device).status()
        free = torch.cuda.mem_get_info(index)[0] / 2**30
    except RuntimeError as error:
        return failure(name, f"it cannot compute: {error}", "look at `nvidia-smi`: other processes may hold its memory")
    message = f"{status}; {free:.0f} GiB free"
    if status.fallback is not None:
        return warning(
            name,
            f"{message}; {status.fallback}",
            "report it with this line: results are exact, but the model is slow without packed batches",
        )
    return ok(name, message)
