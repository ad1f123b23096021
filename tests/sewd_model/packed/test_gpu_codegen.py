"""The kernels of the layers, compiled for an H100 without a card: none spills, and attention uses tensor cores.

Needs Triton, which torch for CPUs comes without: `make gpu-codegen` installs it beside the environment.
"""

import pytest
import torch

from sewd_model import SEWDConfig, SEWDForCTC
from sewd_model.packed import gpu_layers
from sewd_model.packed.gpu import PackedDeviceModel
from tests.support import gpu_codegen

pytest.importorskip("triton", reason="needs Triton: run `make gpu-codegen`")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_no_kernel_of_the_layers_spills(dtype, monkeypatch):
    backend = gpu_codegen.Backend()
    torch.compiler.reset()
    compiled = torch.compile(gpu_layers._run_layers, fullgraph=True, dynamic=False, backend=backend)
    monkeypatch.setattr(gpu_layers, "_compiled", lambda: compiled)
    monkeypatch.setattr(gpu_layers, "_is_compiled", lambda _: True)
    model = PackedDeviceModel(
        [SEWDForCTC(SEWDConfig(num_hidden_layers=1)).eval()], device=torch.device("cpu"), dtype=dtype
    )
    for lengths in ([16_000, 90_000, 5_000], [16_000]):
        model([torch.randn(length) for length in lengths])
    assert len(backend.graphs) == 1
    kernels = {name: gpu_codegen.compile_kernel(source) for name, source in backend.sources.items()}
    for name, configurations in kernels.items():
        print(dtype, name, *configurations, sep="\n  ")  # noqa: T201  the table of `make gpu-codegen`
        assert all((resources.stack, resources.spilled) == (0, 0) for resources in configurations), name
    (attention,) = (configurations for name, configurations in kernels.items() if "flex_attention" in name)
    assert all(resources.load_bits == 128 and resources.tensor_cores for resources in attention)
