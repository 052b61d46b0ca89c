"""What stands in the files of this package, wherever it is installed: in a folder, in a zip archive, or without its sources."""

import marshal
from importlib import resources
from importlib.util import find_spec


def text_beside(module: str, name: str) -> str:
    """Of the file `name` in the package of a module."""
    return resources.files(module.rpartition(".")[0]).joinpath(name).read_text(encoding="utf-8")


def source_of(module: str) -> str:
    """Of a module; what it was compiled to, where it came without its source: for keys of what is made by it."""
    spec = find_spec(module)
    assert spec is not None and spec.loader is not None
    source = spec.loader.get_source(module)  # type: ignore[attr-defined]
    return source if source is not None else marshal.dumps(spec.loader.get_code(module)).hex()  # type: ignore[attr-defined,no-any-return]
