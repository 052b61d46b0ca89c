"""python -m compiledopt demo | explain"""

from __future__ import annotations

import argparse
import ast
import sys
from collections.abc import Sequence
from typing import Any

import torch

import compiledopt
from compiledopt.errors import CompileError
from compiledopt.explain_gpu import explain_gpu


def _option(text: str) -> tuple[str, Any]:
    name, separator, value = text.partition("=")
    if not separator:
        raise argparse.ArgumentTypeError(f"an option is written name=value, got {text!r}")
    if value.isidentifier() and value not in ("None", "True", "False"):
        return name, value  # a word, as in state_dtype=int8
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError) as error:
        raise argparse.ArgumentTypeError(f"{value!r} is not a Python literal") from error


def _architecture(text: str) -> int:
    number = text.removeprefix("sm_")
    if not number.isdecimal():
        raise argparse.ArgumentTypeError(f"an architecture is written sm_90, got {text!r}")
    return int(number)


def _algorithms() -> dict[str, type[compiledopt.Optimizer]]:
    found = {name: getattr(compiledopt, name) for name in compiledopt.__all__}
    return {n: c for n, c in found.items() if isinstance(c, type) and hasattr(c, "rule")}


def explain(arguments: argparse.Namespace) -> int:
    """Explain one algorithm on a small made-up model: four matrices of 1024 × 1024 and, where it takes such, their biases."""
    dtype = getattr(torch, arguments.dtype)
    if arguments.device == "cuda":
        return explain_cuda(arguments, dtype)
    shapes = [(1024, 1024)] * 4 if _algorithms()[arguments.algorithm].for_matrices else [(1024, 1024), (1024,)] * 4
    optimizer = _made(arguments, [torch.nn.Parameter(torch.zeros(shape, dtype=dtype)) for shape in shapes])
    if optimizer is None:
        return 1
    try:
        explanation = optimizer._explanation(source=arguments.source)
    except CompileError as error:
        print(error, file=sys.stderr)
        return 1
    print(explanation.json() if arguments.json else explanation)
    return 0


def _made(arguments: argparse.Namespace, params: list[torch.nn.Parameter]) -> compiledopt.Optimizer | None:
    """The optimizer with the options that were written; None, with a line that says why, where it refuses them."""
    try:
        return _algorithms()[arguments.algorithm](params, **dict(arguments.option))  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError) as error:
        print(f"{arguments.algorithm} refuses these options: {error}", file=sys.stderr)
        return None


def explain_cuda(arguments: argparse.Namespace, dtype: torch.dtype) -> int:
    """The kernel for a GPU, whether there is one or not."""
    algorithm = _algorithms()[arguments.algorithm]
    if not algorithm.rule.dense:
        print(f"{arguments.algorithm} has no kernel over the whole model: it is for sparse gradients", file=sys.stderr)
        return 1
    optimizer = _made(arguments, [torch.nn.Parameter(torch.zeros(1, 1))])
    if optimizer is None:
        return 1
    flags, group = {"source": arguments.source, "ptx": arguments.ptx}, optimizer.param_groups[0]
    try:
        explanation = explain_gpu(arguments.algorithm, algorithm.rule, group, arguments.arch, dtype, **flags)
    except CompileError as error:
        print(f"no kernel: {error}", file=sys.stderr)
        return 1
    print(explanation.json() if arguments.json else explanation)
    return 0


def demo(arguments: argparse.Namespace) -> int:
    try:
        from compiledopt.demo import main
    except ModuleNotFoundError as error:
        print(f"the demo needs {error.name}: pip install '.[demo]'", file=sys.stderr)
        return 1
    return main(quick=arguments.quick, output=arguments.output)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m compiledopt", description=compiledopt.__doc__)
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("explain", help="what runs for an algorithm, and why")
    one.add_argument("algorithm", choices=sorted(_algorithms()), metavar="ALGORITHM")
    one.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    one.add_argument("--dtype", default="float32", choices=["float16", "bfloat16", "float32", "float64"])
    one.add_argument("--option", action="append", default=[], type=_option, metavar="NAME=VALUE", help="amsgrad=True")
    one.add_argument(
        "--arch",
        default="sm_90",
        type=_architecture,
        help="with --device cuda, on a machine with or without a GPU: sm_80, sm_90",
    )
    one.add_argument("--ptx", action="store_true", help="with the PTX")
    one.add_argument("--source", action="store_true", help="with the generated source")
    one.add_argument("--json", action="store_true")
    one.set_defaults(run=explain)
    two = commands.add_parser("demo", help="train a small transformer with torch's AdamW and with ours")
    two.add_argument("--quick", action="store_true", help="under 40 seconds")
    two.add_argument("--output", default="demo.png", help="where to draw the curves (demo.png)")
    two.set_defaults(run=demo)
    arguments = parser.parse_args(argv)
    return int(arguments.run(arguments))


if __name__ == "__main__":
    sys.exit(main())
