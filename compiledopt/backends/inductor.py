"""program → source of one kernel, by torch's Inductor. Everything here is private API of torch.

Tried on torch 2.11.0 and 2.13.0. Whatever breaks in another version becomes a CompileError, and the optimizer falls
back to an eager executor with that reason (tests/test_fallback.py breaks it on purpose).
"""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch

from compiledopt.backends.once import values_once
from compiledopt.errors import CompileError
from compiledopt.rules.composed import COMPOSED, RANDOM, SCALES
from compiledopt.rules.ops import OPS, Op
from compiledopt.rules.program import BLOCKS, REDUCTIONS, Argument, Node, Program
from compiledopt.rules.random import bits_at
from compiledopt.rules.reductions import reduced

Arithmetic = Mapping[str, Callable[..., torch.Tensor]]
Bits = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # what gives 32 random bits for each element, of (seed, step)


@dataclass(frozen=True)
class Lowered:
    """A kernel as Inductor wrote it. body: the source of a function `kernel`; arguments: for each of its arguments, in
    order, ("tensor", input index), ("column", column index), ("place", 0 to 2) or ("length", 0); types: their C types.

    A place is three int32 on a GPU: the first element's in its parameter, and the key of its random bits. On the CPU it is the
    random bits of each element, and who writes the file has a function for them: Inductor takes longer for that chain, in
    which every value is used twice, than for all of the rest."""

    body: str
    arguments: tuple[tuple[str, int], ...]
    types: tuple[str, ...]


def compute_dtype(dtypes: Sequence[torch.dtype]) -> torch.dtype:
    """The dtype of the arithmetic: float64 if anything is, else float32; the half types are for storage alone."""
    return torch.float64 if torch.float64 in dtypes else torch.float32


def evaluate(
    program: Program,
    tensors: Sequence[torch.Tensor],
    columns: Sequence[torch.Tensor],
    arithmetic: Arithmetic | None,
    bits: Bits | None = None,
) -> list[torch.Tensor]:
    """The elementwise part on tensors: the new values of `program.tensor_outputs`.

    bits: where the program is random.
    arithmetic: {an operation: another way to compute it}, and "fma": what makes a·b + c of sums of products with one rounding,
    as torch's vectorized loops do; without it there are two.
    """
    compute, special = tensors[0].dtype, arithmetic or {}
    values: dict[Node, torch.Tensor] = dict(zip(program.tensors, tensors, strict=True))
    values.update(zip(program.columns, columns, strict=True))

    def argument(arg: Argument) -> Any:
        return values[arg] if isinstance(arg, Node) else arg

    for node in program.elementwise_part:
        product = _product_in(node) if "fma" in special else None
        if product is not None:
            values[node] = special["fma"](*_factors(node, product, argument, tensors[0]))
            continue
        args = [argument(arg) for arg in node.args]
        if node.op == RANDOM:
            assert bits is not None
            values[node] = bits(*(_as_tensor(arg, tensors[0].device, torch.float64) for arg in args))
        elif node.op in special:
            values[node] = special[node.op](*(_as_tensor(arg, tensors[0].device, compute) for arg in args))
        elif node.op in REDUCTIONS:
            values[node] = reduced(node, args[0])
        elif node.op in SCALES:
            values[node] = SCALES[node.op](args[0], int(args[1]))
        elif node.op in COMPOSED:
            made = COMPOSED[node.op].tensor(*args)  # of bits alone, it is float32
            values[node] = made.to(compute) if made.is_floating_point() else made
        else:
            values[node] = _computed(OPS[node.op], args, tensors[0].device, compute)
    found = [values[node] for node in program.tensor_outputs.values()]
    shapes = [node.axes for node in program.tensor_outputs.values()]
    return [one if axes == BLOCKS else one.expand_as(tensors[0]) for one, axes in zip(found, shapes, strict=True)]


def _computed(op: Op, args: list[Any], device: torch.device, compute: torch.dtype) -> torch.Tensor:
    """An operation on tensors and numbers. A truth among the columns is a number."""
    if op.truths or op.name == "where":
        args[0] = _as_truth(args[0], device)
    if op.truths:
        args[1:] = [_as_truth(arg, device) for arg in args[1:]]
    elif op.name == "where":
        args[1:] = [_as_tensor(arg, device, compute) for arg in args[1:]]
    elif not op.numbers or not (op.first or isinstance(args[0], torch.Tensor)):
        args = [_as_tensor(arg, device, compute) for arg in args]
    result: torch.Tensor = op.tensor(*args)
    return result


def _as_truth(value: Any, device: torch.device) -> torch.Tensor:
    if not isinstance(value, torch.Tensor):
        return torch.full((), bool(value), dtype=torch.bool, device=device)
    return value if value.dtype is torch.bool else value != 0


def _as_tensor(value: Any, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """Not torch.as_tensor, which would make a tensor with data, and there may be no device to make it on."""
    return value.to(dtype) if isinstance(value, torch.Tensor) else torch.full((), value, dtype=dtype, device=device)


def _product_in(node: Node) -> Node | None:
    """The product that an addition or subtraction consumes: the last, if both operands are products."""
    products = [a for a in node.args if isinstance(a, Node) and a.op == "mul" and not a.scalar]
    return products[-1] if node.op in ("add", "sub") and products else None


def _factors(node: Node, product: Node, argument: Callable[[Argument], Any], example: torch.Tensor) -> list[torch.Tensor]:
    """a, b and c of the a·b + c that an addition or subtraction with this product is."""
    left, right = (argument(arg) for arg in product.args)
    last = node.args[1] is product
    other = argument(node.args[0] if last else node.args[1])
    left, right, other = (_as_tensor(value, example.device, example.dtype) for value in (left, right, other))
    if node.op == "sub":
        left, other = (-left, other) if last else (left, -other)
    return list(torch.broadcast_tensors(left, right, other))  # type: ignore[no-untyped-call]


def traced_multiply_add(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """For a graph of Inductor's."""
    from torch._inductor import inductor_prims

    return inductor_prims.fma(a, b, c)  # type: ignore[no-any-return, no-untyped-call]


def is_fused(device: torch.device) -> bool:
    """Whether a device multiplies and adds in one instruction; std::fma is a slow function where a processor does not."""
    if device.type != "cpu":
        return True
    arm = platform.machine() in ("aarch64", "arm64")
    return arm or torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")


# cpp.simdlen=1: a plain loop that g++ vectorizes by itself, in a file without torch's headers (0.2 s instead of 5).
CPU = {"cpp.threads": 1, "cpp.simdlen": 1, "cpp_wrapper": False, "cpu_backend": "cpp"}
# compile_threads=1: Inductor would hand the kernel to a pool of processes, to compile it for a GPU that may not be there.
CUDA = {"cpp_wrapper": False, "compile_threads": 1}


def lower_cpu(program: Program, dtypes: Sequence[torch.dtype]) -> Lowered:
    """The C++ kernel of a program for one tensor of any length, serial: our launcher does the threading.

    Raises: CompileError, where Inductor does not make one pointwise kernel of it.
    """
    return _lower(program, dtypes, "cpu", CPU, _no_compiler)


def lower_triton(program: Program, dtypes: Sequence[torch.dtype]) -> Lowered:
    """The Triton kernel of a program for one tensor of any length, as for an NVIDIA GPU, on a machine with or without one.

    Raises: CompileError, where Inductor does not make one pointwise kernel of it.
    """
    return _lower(program, dtypes, "cuda", CUDA, _stand_in_for_cuda)


def _lower(
    program: Program,
    dtypes: Sequence[torch.dtype],
    device: str,
    options: dict[str, Any],
    context: Callable[[], AbstractContextManager[None]],
) -> Lowered:
    try:
        with context():
            definitions, calls, names = _codegen(program, dtypes, options, device)
    except Exception as error:
        # torch reads files of its own in the locale's encoding, at the import of Inductor already.
        mend = "; set PYTHONUTF8=1, torch needs it in this locale" if isinstance(error, UnicodeDecodeError) else ""
        raise CompileError(
            f"Inductor of torch {torch.__version__} could not lower {program.rule}: {type(error).__name__}: {error}{mend}"
        ) from error
    if not definitions:
        raise CompileError(f"{program.rule} computes nothing: it returns what it was given")
    if len(definitions) != 1 or len(calls) != 1:
        raise CompileError(f"{program.rule} is not one pass over memory: Inductor made {len(definitions)} kernels of it")
    body = re.search(r"'''(.*)'''", definitions[0], re.DOTALL)
    if body is None:
        raise CompileError(f"the kernel of torch {torch.__version__}'s Inductor has a form that is not known here")
    known = {name: _kind(program, index) for index, name in enumerate(names)}
    given, types = calls[0]
    arguments = tuple(known.get(name, ("length", 0)) for name in given)
    if sum(kind == "length" for kind, _ in arguments) != 1:
        raise CompileError(f"{program.rule} needs a buffer of its own, so it is not one pass over memory")
    return Lowered(body.group(1), arguments, tuple(types))


def _interface(interfaces: Any) -> Any:
    """What Inductor asks of a device, answered for a GPU of sm_80 that is not there."""
    properties = {"type": "cuda", "index": 0, "multi_processor_count": 108, "major": 8, "minor": 0, "warp_size": 32}
    properties |= {"regs_per_multiprocessor": 65536, "max_threads_per_multi_processor": 2048, "max_threads_per_block": 1024}

    class Worker:
        set_device = staticmethod(lambda device: None)
        current_device = staticmethod(lambda: 0)
        get_device_properties = staticmethod(lambda device=None: SimpleNamespace(**properties, gcnArchName=""))

    class StandIn(interfaces.CudaInterface):  # type: ignore[misc]
        is_available = staticmethod(lambda: True)
        is_triton_capable = staticmethod(lambda device=None: True)
        raise_if_triton_unavailable = staticmethod(lambda device=None: None)
        get_compute_capability = staticmethod(lambda device=None: 80)
        current_device = staticmethod(lambda: 0)
        get_device_properties = Worker.get_device_properties  # type: ignore[assignment]
        synchronize = staticmethod(lambda device=None: None)

    StandIn.Worker = Worker  # type: ignore[assignment,misc]
    return StandIn


@contextmanager
def _stand_in_for_cuda() -> Iterator[None]:
    """Let Inductor write Triton where there is no CUDA; where there is, nothing is touched. Tried on torch 2.11.0 and
    2.13.0 (CPU build, and CUDA build without a GPU)."""
    if torch.cuda.is_available():
        yield
        return
    import torch._dynamo.device_interface as interfaces
    import torch.utils._triton as triton_utilities

    interfaces.get_interface_for_device("cpu")  # registers the real ones, once
    stand_in = _interface(interfaces)
    with ExitStack() as stack:
        # Whether there is Triton for a GPU may have been asked before, and the answer kept.
        kept = [value.cache_clear for value in vars(triton_utilities).values() if hasattr(value, "cache_clear")]
        for forget in kept:
            forget()
            stack.callback(forget)
        known = dict(interfaces.device_interfaces)
        stack.callback(interfaces.device_interfaces.update, known)
        stack.callback(interfaces.device_interfaces.clear)
        for name in ("cuda", "cuda:0"):
            interfaces.register_interface_for_device(name, stand_in)
        for module, attribute, value in (
            (triton_utilities, "triton_hash_with_backend", lambda: "compiledopt"),
            (torch.cuda, "get_device_capability", lambda device=None: (8, 0)),
        ):
            stack.callback(setattr, module, attribute, getattr(module, attribute))
            setattr(module, attribute, value)
        yield


@contextmanager
def _no_compiler() -> Iterator[None]:
    """Keep Inductor from running a compiler. It compiles three test programs to find out the vector ISA (3.9 s with an empty
    cache), and the answer is not wanted here; and it asks whether the compiler is g++, for one pragma, and knows neither
    ziglang's nor `CXX="ccache g++"`. Tried on torch 2.13.0; the first also on 2.11.0."""
    from torch._inductor import cpp_builder, cpu_vec_isa

    def none() -> Any:
        return cpu_vec_isa.invalid_vec_isa

    def is_gcc() -> bool:
        return True

    stands_in = {"pick_vec_isa": (none, cpu_vec_isa.pick_vec_isa), "is_gcc": (is_gcc, cpp_builder.is_gcc)}
    cpu_vec_isa.pick_vec_isa, cpp_builder.is_gcc = none, is_gcc  # type: ignore[assignment]
    try:
        yield
    finally:
        # A module imported meanwhile may have taken over the name: the user's own torch.compile then failed in g++.
        for module in [module for name, module in list(sys.modules.items()) if name.startswith("torch._inductor")]:
            for name, (other, original) in stands_in.items():
                if getattr(module, name, None) is other:
                    setattr(module, name, original)


def _kind(program: Program, index: int) -> tuple[str, int]:
    tensors, columns = len(program.tensors), len(program.columns)
    if index >= tensors + columns:
        return "place", index - tensors - columns
    return ("tensor", index) if index < tensors else ("column", index - tensors)


def _codegen(
    program: Program, dtypes: Sequence[torch.dtype], options: dict[str, Any], device: str
) -> tuple[list[str], list[Any], list[str]]:
    """Run Inductor on the program; (kernel definitions, (argument names, types) of the calls, graph input names)."""
    from torch._guards import TracingContext, tracing
    from torch._inductor import config
    from torch._inductor.debug import DebugContext
    from torch._inductor.graph import GraphLowering
    from torch._inductor.virtualized import V

    mode, fakes, shape_env = _fake_inputs(program, dtypes, device)
    with torch.no_grad():
        module = _in_place_graph(program, dtypes, fakes)
    definitions: list[str] = []
    calls: list[Any] = []
    with ExitStack() as stack:
        for context in (config.patch(options), tracing(TracingContext(mode)), V.set_fake_mode(mode), torch.no_grad()):
            stack.enter_context(context)
        stack.enter_context(values_once())
        graph = GraphLowering(module, example_inputs=fakes, shape_env=shape_env, is_inference=True)
        _record_kernels(graph, definitions, calls)
        for context in (V.set_graph_handler(graph), V.set_debug_handler(DebugContext())):
            stack.enter_context(context)
        graph.run(*fakes)
        graph.codegen()
        return definitions, calls, list(graph.graph_input_names)


def _record_kernels(graph: Any, definitions: list[str], calls: list[Any]) -> None:
    """Watch the two methods through which every backend of Inductor defines and calls its kernels."""
    make_wrapper = graph.init_wrapper_code

    def init_wrapper_code(*args: Any, **kwargs: Any) -> None:
        make_wrapper(*args, **kwargs)
        wrapper = graph.wrapper_code
        define, call = wrapper.define_kernel, wrapper.generate_kernel_call

        def define_kernel(name: str, body: str, *args: Any, **kwargs: Any) -> Any:
            definitions.append(body)
            return define(name, body, *args, **kwargs)

        def generate_kernel_call(name: str, arguments: Any, *args: Any, **kwargs: Any) -> Any:
            calls.append(([str(a) for a in arguments], [str(t) for t in kwargs["arg_types"]]))
            return call(name, arguments, *args, **kwargs)

        wrapper.define_kernel = define_kernel
        wrapper.generate_kernel_call = generate_kernel_call

    graph.init_wrapper_code = init_wrapper_code


def _fake_inputs(program: Program, dtypes: Sequence[torch.dtype], device: str) -> tuple[Any, list[torch.Tensor], Any]:
    """Fake tensors of one dynamic length, and fake 0-dim columns."""
    from torch._dynamo.source import ConstantSource
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv

    shape_env = ShapeEnv()
    symbol = shape_env.create_symbol(1024, ConstantSource("length"), DimDynamic.DYNAMIC)
    length = shape_env.create_symintnode(symbol, hint=1024)
    mode = FakeTensorMode(shape_env=shape_env)
    with mode:
        fakes = [torch.empty(length, dtype=dtype, device=device) for dtype in dtypes]  # type: ignore[list-item]
        fakes += [torch.empty((), dtype=compute_dtype(dtypes), device=device) for _ in program.columns]
        places: list[Any] = [(length,)] if device == "cpu" else [(), (), ()]
        fakes += [torch.empty(shape, dtype=torch.int32, device=device) for shape in places if program.is_random]
    return mode, fakes, shape_env


def _in_place_graph(program: Program, dtypes: Sequence[torch.dtype], fakes: list[torch.Tensor]) -> Any:
    """The elementwise part as an ATen graph that ends in copies into its own inputs."""
    from torch._dispatch.python import enable_python_dispatcher
    from torch._inductor.decomposition import select_decomp_table
    from torch.fx.experimental.proxy_tensor import make_fx

    compute, count = compute_dtype(dtypes), len(program.tensors)
    fused = {"fma": traced_multiply_add} if is_fused(fakes[0].device) else None
    index = {node.name: i for i, node in enumerate(program.tensors)}
    written = [index[name] for name in program.tensor_outputs]

    def body(*inputs: torch.Tensor) -> list[torch.Tensor]:
        tensors = [tensor.to(compute) for tensor in inputs[:count]]
        columns = inputs[count : count + len(program.columns)]

        def bits(*_: torch.Tensor) -> torch.Tensor:  # the key of (seed, step, parameter) is among the inputs
            if tensors[0].device.type == "cpu":
                return inputs[-1]
            first, *words = inputs[-3:]
            element = torch.arange(tensors[0].shape[0], dtype=torch.int32, device=first.device) + first
            return bits_at((words[0], words[1]), element)

        results = evaluate(program, tensors, columns, fused, bits)
        return [result.to(dtypes[i]) for i, result in zip(written, results, strict=True)]

    with enable_python_dispatcher():
        module = make_fx(body, select_decomp_table(), "fake", True)(*fakes)
    graph = module.graph
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    output = next(node for node in graph.nodes if node.op == "output")
    with graph.inserting_before(output):
        for i, result in zip(written, output.args[0], strict=True):
            copy = graph.call_function(torch.ops.aten.copy_.default, (placeholders[i], result))
            copy.meta["val"] = placeholders[i].meta["val"]
    output.args = ((),)
    module.recompile()
    return module
