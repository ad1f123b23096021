"""CUDA kernels of compute capability 9.0 from torch's compiler, on a machine without a card.

`Backend` is a backend of torch.compile for tensors on the CPU. It hands inductor the same graph with inputs that
pretend to be on a GPU, keeps the source of each Triton kernel, and returns the graph as it is, which then runs on the
CPU. So one run shows the results, the graphs and guards that torch.compile would make on a GPU, and their kernels.
"""

import contextlib
import re
import subprocess
import tempfile
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._dynamo.device_interface import CudaInterface
from torch._functorch.aot_autograd import aot_module_simplified
from torch._inductor import async_compile, compile_fx, scheduler
from torch._inductor import config as inductor_options
from torch._inductor.codecache import PyCodeCache
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.runtime import triton_helpers
from torch.fx import GraphModule
from torch.utils._pytree import tree_map

FLEX_ATTENTION = "torch._higher_order_ops.flex_attention"
H100 = types.SimpleNamespace(
    name="NVIDIA H100 80GB HBM3",
    major=9,
    minor=0,
    multi_processor_count=132,
    regs_per_multiprocessor=65_536,
    max_threads_per_multi_processor=2_048,
    max_threads_per_block=1_024,
    warp_size=32,
    shared_memory_per_block_optin=232_448,
    total_memory=80 << 30,
    gcnArchName="",
)


@dataclass(frozen=True)
class Resources:
    """What a thread of a compiled kernel uses, and what the kernel loads and stores.

    Attributes:
        registers: 32-bit registers of a thread.
        stack: bytes of a thread's stack.
        spilled: bytes that registers are spilled to, stored and loaded.
        shared: bytes of shared memory of a block.
        load_bits: the width of the widest load from global memory.
        tensor_cores: whether the kernel multiplies on tensor cores.
    """

    registers: int
    stack: int
    spilled: int
    shared: int
    load_bits: int
    tensor_cores: bool


@contextlib.contextmanager
def pretended_card() -> Iterator[None]:
    """Let torch's compiler believe that there is an H100."""

    def replace(owner: object, name: str, value: object) -> None:
        function = (lambda *_, **__: value) if not isinstance(owner, type) else staticmethod(lambda *_, **__: value)
        stack.enter_context(mock.patch.object(owner, name, function))

    from triton.backends.compiler import GPUTarget
    from triton.runtime.driver import driver

    with contextlib.ExitStack() as stack:
        target = types.SimpleNamespace(get_current_target=lambda: GPUTarget("cuda", 90, 32))
        stack.enter_context(mock.patch.object(driver, "_active", target))
        stack.enter_context(inductor_options.patch(use_static_triton_launcher=False))
        stack.enter_context(mock.patch("torch._C._cuda_getCurrentRawStream", return_value=0, create=True))
        for name, value in (
            ("get_device_properties", H100),
            ("get_device_capability", (9, 0)),
            ("current_device", 0),
            ("device_count", 1),
        ):
            replace(torch.cuda, name, value)
        replace(CudaInterface, "get_device_properties", H100)
        replace(CudaInterface.Worker, "get_device_properties", H100)
        replace(CudaInterface, "get_compute_capability", 90)
        replace(CudaInterface, "is_available", True)
        replace(triton_helpers, "set_driver_to_gpu", None)
        replace(scheduler, "has_triton", True)
        replace(CudaInterface, "is_bf16_supported", True)
        # The shapes of attention's result, for contiguous queries; torch would look for the library to copy nothing.
        stack.enter_context(mock.patch(f"{FLEX_ATTENTION}._permute_strides", lambda out, _: out))
        yield


@dataclass
class Backend:
    """A backend of torch.compile that generates kernels for a GPU and runs the graph on the CPU.

    Attributes:
        graphs: each graph that was compiled.
        sources: the source of each kernel, by name.
    """

    graphs: list[GraphModule] = field(default_factory=list)
    sources: dict[str, str] = field(default_factory=dict)

    def __call__(self, graph: GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        """Compile a graph."""
        self.graphs.append(graph)
        aot_module_simplified(
            graph,
            [node.meta["example_value"] for node in graph.graph.find_nodes(op="placeholder")],
            fw_compiler=self._generate,
            inference_compiler=self._generate,
            decompositions=select_decomp_table(),
            keep_inference_input_mutations=True,
        )
        return graph.forward

    def _generate(self, graph: GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        """Generate the kernels of a graph of operators, and keep their sources."""

        def on_card(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="cuda")

        with next(value.fake_mode for value in inputs if isinstance(value, Tensor)):
            for part in (part for part in graph.modules() if isinstance(part, GraphModule)):
                for node in part.graph.nodes:
                    node.meta["val"] = tree_map(on_card, node.meta.get("val"))
            pretended = tree_map(on_card, inputs)

        def keep_source(_: object, name: str, source: str, device_str: str = "cuda") -> None:
            self.sources[name] = source

        with pretended_card(), mock.patch.object(async_compile.AsyncCompile, "triton", keep_source):
            compile_fx.compile_fx_inner(graph, pretended)
        return graph.forward


def compile_kernel(source: str) -> list[Resources]:
    """Compile the source of a kernel from inductor, for each configuration among which torch would choose by time."""
    with pretended_card():
        kernels = vars(PyCodeCache.load(source)).values()
        autotuner = next(value for value in kernels if hasattr(value, "compile_results"))
        autotuner.precompile(warm_cache_only=True)
    compiled = [result.kernel for result in autotuner.compile_results]
    return [resources(kernel.asm["cubin"], kernel.asm["ptx"], kernel.metadata.shared) for kernel in compiled]


def resources(cubin: bytes, ptx: str, shared: int) -> Resources:
    """Read what a kernel uses from its machine code; spills as the assembler reports them."""
    import triton

    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.TemporaryDirectory() as folder:
        binary, text = Path(folder, "kernel.cubin"), Path(folder, "kernel.ptx")
        binary.write_bytes(cubin)
        text.write_text(ptx)

        def output(tool: str, *arguments: str | Path) -> str:
            done = subprocess.run([tools / tool, *arguments], capture_output=True, text=True, check=True)
            return done.stdout + done.stderr

        usage = output("cuobjdump", "--dump-resource-usage", binary)
        assembly = output("nvdisasm", binary)
        report = output("ptxas", "-v", "--gpu-name=sm_90a", text, "-o", Path(folder, "again.cubin"))
    spills = re.findall(r"(\d+) bytes spill", report)
    return Resources(
        registers=int(re.findall(r"REG:(\d+)", usage)[0]),
        stack=int(re.findall(r"STACK:(\d+)", usage)[0]),
        spilled=sum(map(int, spills)),
        shared=shared,
        load_bits=max([int(width or 32) for width in re.findall(r"\bLDG(?:STS)?\.E\S*?(?:\.(64|128))?[. ]", assembly)]),
        tensor_cores=bool(re.search(r"\b(HGMMA|HMMA|QGMMA)\b", assembly)),
    )
