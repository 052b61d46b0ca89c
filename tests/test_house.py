"""The house rules: who imports whom, how long things are, and what the public names are."""

import ast
import statistics
import textwrap
from pathlib import Path

import pytest
from catalog import CATALOG, MENU
from fault_list import FAULTS
from faults import place_of

import compiledopt
from compiledopt.backends.cpp import kernels

ROOT = Path(compiledopt.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
TESTS = sorted(Path(__file__).parent.glob("*.py"))
# A room may import what stands after it, and itself.
ROOMS = [
    "__main__",
    "demo",
    "__init__",
    "own",
    "combined",
    "menu",
    "swa_utils",
    "lr_scheduler",
    "schedules",
    "algorithms",
    "optimizer",
]
ROOMS += ["arguments", "explain_gpu", "explain", "step", "around", "storage", "backends", "rules", "stats", "errors", "version"]
ROOMS += ["files", "depth", "interrupts", "torch_private"]
PRIVATE = ("torch._inductor", "torch._dynamo", "torch._guards", "torch._subclasses", "torch.fx", "torch._dispatch")
MOST = 10  # of the package's modules that one may import


def room(name: str) -> str:
    parts = name.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in ROOMS else "__init__"


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT.parent).with_suffix("").parts)


def imports(path: Path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module == "compiledopt":
            yield from (f"compiledopt.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module


@pytest.mark.parametrize("path", FILES, ids=lambda path: module_of(path))
def test_imports_go_in_one_direction(path):
    mine = room(module_of(path))
    for name in imports(path):
        if name.split(".")[0] == "compiledopt":
            assert ROOMS.index(room(name)) >= ROOMS.index(mine), f"{mine} imports {name}"
        if mine not in ("backends", "torch_private"):
            assert not name.startswith(PRIVATE), f"{mine} imports {name}, which only the backends may"


REGISTRIES = (ROOT / "__init__.py", ROOT / "around" / "__init__.py")  # which name whatever there is of a kind


@pytest.mark.parametrize("path", [path for path in FILES if path not in REGISTRIES], ids=lambda path: module_of(path))
def test_no_module_knows_many_others(path):
    known = {name for name in imports(path) if name.startswith("compiledopt")}
    assert len(known) <= MOST, sorted(known)


def test_who_asks_backends_knows_none():
    """Only decide.py names the eager ones; the plan and the interface name nobody."""
    for file, forbidden in (("step/plan.py", "backends."), ("backends/batch.py", "backends.")):
        allowed = {"backends.batch", "backends.checks", "backends.distributed", "backends.layout"}
        named = {name.removeprefix("compiledopt.") for name in imports(ROOT / file) if forbidden in name}
        assert named <= allowed, named - allowed
    source = (ROOT / "step" / "plan.py").read_text()
    assert "isinstance" not in source and not any(f'"{name}"' in source for name in ("compiled", "foreach", "for-loop"))


def test_no_import_cycle():
    graph = {module_of(p).removesuffix(".__init__"): {n for n in imports(p) if n.startswith("compiledopt")} for p in FILES}

    seen = set()

    def visit(name, path):
        assert name not in path, f"cycle: {[*path, name]}"
        for other in graph.get(name, ()) if name not in seen else ():
            if other != "compiledopt":
                visit(other, [*path, name])
        seen.add(name)

    for name in graph:
        visit(name, [])


def statements(path: Path) -> int:
    """Code lines as the scorecard counts them: an import block or an argument list laid out one per line is one."""
    tree = ast.parse(path.read_text())
    return sum(isinstance(n, ast.stmt) for n in ast.walk(tree))


def test_scorecard():
    adam = ROOT / "algorithms" / "adam.py"
    assert statements(adam) <= 70, "Adam and AdamW"
    most = {"adam.py": 70, "adafactor.py": 70, "muon.py": 90, "lbfgs.py": 140, "line_search.py": 80}
    most["adamp.py"] = 50  # AdamP and SGDP
    for path in (ROOT / "algorithms").rglob("*.py"):
        assert statements(path) <= most.get(path.name, 40), path
    assert sum("torch.maximum(max_exp_avg_sq" in path.read_text() for path in (ROOT / "algorithms").glob("*.py")) == 1, (
        "Adam's mathematics once"
    )
    for path in FILES:
        assert path.read_text().count("\n") <= 400, path
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                documented = isinstance(node.body[0], ast.Expr) and isinstance(node.body[0].value, ast.Constant)
                start = node.body[1] if documented and len(node.body) > 1 else node.body[0]
                assert node.end_lineno - start.lineno + 1 <= 40, f"{path.name}: {node.name}"


def test_native_files_are_short_and_all_of_them_are_joined():
    native = ROOT / "backends" / "cpp"
    for path in [*native.rglob("*.h"), *native.rglob("*.cpp")]:
        assert path.read_text().count("\n") <= 400, path
    joined = {native / name for name in (*kernels.LAUNCHER, *kernels.PASSES)}
    assert joined == {path for folder in ("launcher", "passes") for path in (native / folder).iterdir()}


def test_an_algorithm_is_its_own_file_and_little_more():
    """Each thing said once: a file of the median length has at most 60 lines, docstrings included; Adam and AdamW 105."""
    lengths = {path.name: path.read_text().count("\n") for path in (ROOT / "algorithms").glob("*.py")}
    assert statistics.median(lengths.values()) <= 60 and lengths["adam.py"] <= 105


def test_the_catalog_has_every_algorithm():
    public = {name for name in compiledopt.__all__ if isinstance(getattr(compiledopt, name), type)} - {
        "Optimizer",
        "Combined",
        "Lookahead",
        "SAM",
    }
    assert set(CATALOG) | set(MENU) == public
    assert all(one.cases or not one.elementwise for one in CATALOG.values())


def test_public_names_are_documented():
    assert len(set(compiledopt.__all__)) == len(compiledopt.__all__)
    for name in compiledopt.__all__:
        value = getattr(compiledopt, name)
        assert value.__doc__ and len(value.__doc__.splitlines()[0]) > 20, name
    assert (ROOT / "py.typed").exists()


def named(node):
    """The algorithm that an element of a list is: "AdamW", compiledopt.AdamW, AdamW, or a pytest.param of one."""
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.param" and len(node.args) == 1:
        return named(node.args[0])
    name = ast.unparse(node).removeprefix("compiledopt.").removeprefix("torch.optim.").strip("'")
    return name if name in CATALOG or name in MENU else None


def lists_of_algorithms(tree):
    """Literal lists that say no more of several algorithms than their names. What a test expects is none, if it stands in an
    equation, and neither is a command."""
    expected = {id(one) for node in ast.walk(tree) if isinstance(node, ast.Compare) for one in equated(node)}
    for node in ast.walk(tree):
        if isinstance(node, (ast.List, ast.Tuple, ast.Set)) and id(node) not in expected:
            names = {named(one) for one in node.elts} - {None}
            if len(names) > 1 and not any(ast.unparse(one).startswith("'--") for one in node.elts):
                yield node.lineno, names


def equated(node):
    return [node.left, *node.comparators] if all(isinstance(op, ast.Eq) for op in node.ops) else []


BESIDE = Path(__file__).parent.parent  # the checkout, wherever the package is installed
LISTING = [*TESTS, *sorted((BESIDE / "perf").glob("*.py")), *sorted((BESIDE / "docs").glob("*.py"))]


@pytest.mark.parametrize("path", LISTING, ids=lambda path: path.stem)
def test_the_catalog_alone_lists_algorithms(path):
    """Others ask it, by what the algorithms are: so a new one is tried and measured by all whom it concerns."""
    assert not list(lists_of_algorithms(ast.parse(path.read_text())))


def test_lists_of_algorithms_are_found():
    """By the ways in which they were written."""
    found = """
        for name in ("AdamW", "SGD"): ...
        kinds = [compiledopt.AdamW, torch.optim.Muon]
        @pytest.mark.parametrize("name", ["AdamW", pytest.param("Lion", marks=slow), *others])
        def test(name): ...
        several = {*others, "AdamP", "SGDP"}
    """
    none = """
        assert [type(one) for one in parts] == ["Muon", "AdamW"]
        one = ["AdamW", 3]; command = ["--optimizer", "AdamW", "SGD"]; expected = {"AdamW": 1, "SGD": 2}
        for name, most in (("AdamW", 1), ("SGD", 2)): ...
    """
    assert len(list(lists_of_algorithms(ast.parse(textwrap.dedent(found))))) == 4
    assert not list(lists_of_algorithms(ast.parse(textwrap.dedent(none))))


def names_of(tree):
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_every_fault_is_where_the_code_is():
    """What tests/faults.py puts in is found, and tried by tests that are there. Where code moved, move the fault too."""
    defined = {path.name: names_of(ast.parse(path.read_text())) for path in TESTS}
    for fault in FAULTS:
        assert place_of(ROOT.parent, fault)
        for test in fault.tests:
            file, name = test.split("[")[0].split("::")
            assert name in defined[file], f"{fault.name}: there is no {test}"
