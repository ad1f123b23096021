"""Speed of float32 matrix products on this machine's CPU, at the shapes of the model, by library.

    python -m benchmarks.products [--instructions best|avx2] [--rounds N] [--output FILE]

The linear layers and convolutions of SEW-D are products of some hundred rows with a constant weight. This table shows
which library computes them fastest on one thread and on all: MKL and oneDNN as in torch (`torch.mm`; oneDNN with the
weight in its own layout, as `sewd_model.packed.products` uses it), OpenBLAS as in numpy, ONNX Runtime (MLAS, with the
weight packed in advance), the C++ kernels that torch's compiler generates (needs a C++ compiler), BLIS (where the
package `blis` is installed), and XNNPACK (where `ai-edge-litert` and `flatbuffers` are; the weight is packed in
advance). All libraries take turns within a round, and the best round of each counts: other load only makes a product
slower. With `--instructions avx2` all of them but ONNX Runtime and XNNPACK, which have no such switch, do without
AVX-512. Needs the development dependencies.
"""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnx
import onnxruntime
import torch
import typer
from onnx import helper, numpy_helper
from rich.console import Console
from rich.table import Table
from torch._inductor import config as compiler
from torch._inductor.exc import InductorError

from benchmarks.workload import timed
from sewd_model.packed.products import OneDNNLinear

try:
    from blis.py import gemm  # type: ignore[import-not-found, import-untyped, unused-ignore]  # not a dependency
except ImportError:
    gemm = None
try:
    import flatbuffers  # type: ignore[import-not-found, import-untyped, unused-ignore]  # not a dependency
    from ai_edge_litert import interpreter as litert  # type: ignore[import-not-found, import-untyped, unused-ignore]
    from ai_edge_litert import schema_py_generated as tflite  # type: ignore[import-not-found, unused-ignore]
except ImportError:
    litert = None


class Instructions(StrEnum):
    """The instruction sets that the libraries may use."""

    BEST = "best"
    AVX2 = "avx2"


ONLY_AVX2 = {
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "OPENBLAS_CORETYPE": "Haswell",
    "BLIS_ARCH_TYPE": "haswell",
}
SHAPES = {  # rows, columns of the input, columns of the output
    "feed-forward, first": (240, 384, 1536),
    "feed-forward, second": (240, 1536, 384),
    "queries, keys, values": (240, 384, 1152),
    "convolution of layer 7": (803, 384, 128),
    "convolution of layer 10": (401, 384, 256),
    "projection of the output": (100, 512, 512),
    "positions of one head": (182, 64, 545),
}

Product = Callable[[], object]


def main(
    instructions: Annotated[Instructions, typer.Option(help="Instruction sets that may be used.")] = Instructions.BEST,
    rounds: Annotated[int, typer.Option(help="Measurements of each product.")] = 15,
    output: Annotated[Path, typer.Option(help="JSON file for the figures.")] = Path("products-benchmark.json"),
) -> None:
    """Time float32 products at the model's shapes by each library; print a table of GFLOP/s and write JSON."""
    environment = {key: value for key, value in os.environ.items() if key not in ("OPENBLAS_L2_SIZE", *ONLY_AVX2)}
    if instructions is Instructions.AVX2:
        environment |= ONLY_AVX2
    figures = {}
    for threads in sorted({1, os.cpu_count() or 1}):
        numbers = {f"{library}_NUM_THREADS": str(threads) for library in ("OMP", "MKL", "OPENBLAS", "BLIS")}
        code = f"from benchmarks.products import measure; measure({threads}, {rounds})"
        command = [sys.executable, "-c", code]
        child = subprocess.run(command, env=environment | numbers, stdout=subprocess.PIPE, check=True, text=True)
        figures[threads] = json.loads(child.stdout.splitlines()[-1])
    output.write_text(json.dumps({"machine": platform.machine(), "instructions": instructions, "figures": figures}))
    print_tables(figures)


def measure(threads: int, rounds: int) -> None:
    """Write the GFLOP/s of each library at each shape to standard output, as JSON.

    Runs in a process of its own, since the libraries read their settings when they are loaded.
    """
    torch.set_num_threads(threads)
    figures = {}
    for name, (rows, inputs, outputs) in SHAPES.items():
        with torch.inference_mode():
            products = _products(rows, inputs, outputs, threads)
            calls = max(3, round(2e9 / (2 * rows * inputs * outputs)))  # about 20 ms
            seconds: dict[str, list[float]] = {library: [] for library in products}
            for round_number in range(rounds + 1):
                for library, product in products.items():
                    elapsed = timed(partial(_repeat, product, calls))
                    if round_number:  # the first one warms up
                        seconds[library].append(elapsed / calls)
        operations = 2e-9 * rows * inputs * outputs
        figures[name] = {library: operations / min(of_library) for library, of_library in seconds.items()}
    sys.stdout.write(json.dumps(figures))


def _repeat(product: Product, calls: int) -> None:
    for _ in range(calls):
        product()


def _products(rows: int, inputs: int, outputs: int, threads: int) -> dict[str, Product]:
    """Return the product of the same matrices by each library that is installed; each is checked against the first."""
    torch.manual_seed(0)
    data, weight = torch.randn(rows, inputs), torch.randn(outputs, inputs)
    packed = OneDNNLinear.pack(weight, None)
    array, transposed = data.numpy(), weight.numpy().T
    products: dict[str, Product] = {
        "MKL": lambda: torch.mm(data, weight.T),
        "oneDNN": lambda: packed(data),
        "OpenBLAS": lambda: np.matmul(array, transposed),
        "ONNX Runtime": _onnx_product(array, transposed, threads),
    }
    compiled = _compiled_product(data, weight)
    if compiled:
        products["torch compiler"] = compiled
    if gemm:
        contiguous = np.ascontiguousarray(transposed)
        products["BLIS"] = lambda: gemm(array, contiguous)
    if litert:
        products["XNNPACK"] = _xnnpack_product(array, weight.numpy(), threads)
    expected = np.asarray(products["MKL"]())
    for library, product in products.items():
        np.testing.assert_allclose(np.asarray(product()), expected, rtol=1e-3, atol=1e-2, err_msg=library)
    return products


def _onnx_product(data: np.ndarray, weight: np.ndarray, threads: int) -> Product:
    """Return the product of an ONNX graph with a constant weight, which ONNX Runtime packs when it loads the graph."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["rows", "weight"], ["result"])],
        "product",
        [helper.make_tensor_value_info("rows", onnx.TensorProto.FLOAT, data.shape)],
        [helper.make_tensor_value_info("result", onnx.TensorProto.FLOAT, [data.shape[0], weight.shape[1]])],
        [numpy_helper.from_array(weight, "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"rows": data})[0]


def _compiled_product(data: torch.Tensor, weight: torch.Tensor) -> Product | None:
    """Return the product by torch's C++ template with the weight frozen into the graph; None without a compiler."""

    class Layer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(weight, requires_grad=False)

        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.linear(rows, self.weight)

    with compiler.patch(freezing=True, max_autotune=True, max_autotune_gemm_backends="CPP"):
        compiled = torch.compile(Layer().eval())
        try:
            compiled(data)
        except InductorError as error:
            sys.stderr.write(f"No products by torch's compiler: {error}\n")
            return None
    return lambda: compiled(data)


def _xnnpack_product(data: np.ndarray, weight: np.ndarray, threads: int) -> Product:
    """Return the product of a graph of LiteRT with one layer, which it gives to XNNPACK."""

    def tensor(name: str, shape: tuple[int, ...], buffer: int = 0) -> Any:
        found = tflite.TensorT()
        found.name, found.shape, found.type, found.buffer = name, list(shape), tflite.TensorType.FLOAT32, buffer
        return found

    graph, layer, kind, content, model = (
        tflite.SubGraphT(),
        tflite.OperatorT(),
        tflite.OperatorCodeT(),
        tflite.BufferT(),
        tflite.ModelT(),
    )
    content.data = np.frombuffer(weight.tobytes(), np.uint8)
    kind.builtinCode = kind.deprecatedBuiltinCode = tflite.BuiltinOperator.FULLY_CONNECTED
    kind.version = 1
    layer.inputs, layer.outputs = [0, 1, -1], [2]  # no bias
    layer.builtinOptionsType = tflite.BuiltinOptions.FullyConnectedOptions
    layer.builtinOptions = tflite.FullyConnectedOptionsT()
    graph.tensors = [tensor("rows", data.shape), tensor("weight", weight.shape, 1)]
    graph.tensors.append(tensor("result", (len(data), len(weight))))
    graph.inputs, graph.outputs, graph.operators = [0], [2], [layer]
    model.version, model.operatorCodes, model.subgraphs = 3, [kind], [graph]
    model.buffers = [tflite.BufferT(), content]  # the first is that of tensors without constants
    builder = flatbuffers.Builder(0)
    builder.Finish(model.Pack(builder), b"TFL3")
    session = litert.Interpreter(model_content=bytes(builder.Output()), num_threads=threads)
    session.allocate_tensors()
    session.set_tensor(0, data)
    result = session.tensor(2)

    def product() -> np.ndarray:
        session.invoke()
        return result()  # a view: an interpreter does not run while one is kept

    return product


def print_tables(figures: dict[int, dict[str, dict[str, float]]]) -> None:
    """Print GFLOP/s of each shape and library, a table for each number of threads."""
    for threads, of_threads in figures.items():
        table = Table(title=f"GFLOP/s on {threads} thread{'s' * (threads > 1)}")
        table.add_column("product")
        table.add_column("rows x inputs x outputs", no_wrap=True)
        for library in next(iter(of_threads.values())):
            table.add_column(library, justify="right")
        for name, values in of_threads.items():
            shape = " x ".join(map(str, SHAPES[name]))
            table.add_row(name, shape, *(f"{value:.0f}" for value in values.values()))
        Console(width=140).print(table)


if __name__ == "__main__":
    typer.run(main)
