"""The pages with examples: every block of Python runs, in order, as one program."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"
PAGES = ["migrate-from-torch.md", "training-loop.md", "meta-learning.md", "../CONTRIBUTING.md"]


@pytest.mark.processes
@pytest.mark.parametrize("page", PAGES)
def test_examples_run(page, tmp_path, monkeypatch, capsys):
    if not DOCS.exists():
        pytest.skip("the tests run without the repository around them")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)
    assert blocks
    names: dict = {"__name__": "__main__"}
    for number, block in enumerate(blocks):
        exec(compile(block, f"{page}, block {number}", "exec"), names)
    assert capsys.readouterr().out


def test_links_lead_somewhere():
    if not DOCS.exists():
        pytest.skip("the tests run without the repository around them")
    for page in [*DOCS.glob("*.md"), *DOCS.parent.glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
        for target in re.findall(r'(?:src|srcset)="([^"]+)"', page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
