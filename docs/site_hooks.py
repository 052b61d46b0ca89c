"""What mkdocs needs beside the pages: the repository's own pages, the reference of the public API, links out of docs/."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType
from typing import Any

from mkdocs.structure.files import File

import compiledopt

ROOT = Path(__file__).parent.parent
OWN = {"README.md": "index.md", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
LINK = re.compile(r"\[([^\]]+)\]\(([^)#:]+)(#[^)]*)?\)")


def on_files(files: Any, config: Any) -> Any:
    for name, page in OWN.items():
        files.append(File.generated(config, page, content=from_root((ROOT / name).read_text())))
    files.append(File.generated(config, "reference.md", content=reference()))
    return files


def from_root(text: str) -> str:
    """A page of the repository's root as one of docs/."""
    for name, page in OWN.items():
        text = text.replace(f"]({name})", f"]({page})")
    return text.replace("](docs/", "](").replace('"docs/pictures/', '"pictures/')


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """A link to a file of the repository that is no page becomes its name; one to no file at all stays, and fails the build."""

    def name(link: re.Match[str]) -> str:
        file = (ROOT / "docs" / link[2]).resolve()
        outside = file.is_file() and ROOT / "docs" not in file.parents
        return f"`{link[1]}` in `{file.relative_to(ROOT)}`" if outside else link[0]

    return LINK.sub(name, markdown)


def reference() -> str:
    """Every public name, from the package's own list of them."""
    public = {name: getattr(compiledopt, name) for name in compiledopt.__all__}
    public = {
        name: value for name, value in public.items() if getattr(value, "__module__", "compiledopt").startswith("compiledopt")
    }
    modules = [name for name, value in public.items() if isinstance(value, ModuleType)]
    classes = [name for name, value in public.items() if isinstance(value, type)]
    others = [name for name in public if name not in modules and name not in classes]
    lines = ["# Reference", "", "Each entry is the docstring of the code.", ""]
    for name in ("Optimizer", *others, *(name for name in classes if name != "Optimizer")):
        lines += [f"::: compiledopt.{name}", ""]
    for name in modules:
        lines += [
            f"::: compiledopt.{name}",
            "    options:",
            "      show_root_full_path: true",
            "      inherited_members: false",
            "",
        ]
    return "\n".join(lines)
