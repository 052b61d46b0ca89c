"""The core tests on other versions of torch: python tests/versions.py [2.11.0 2.13.0] [--keep FOLDER]

Each version gets an environment and a cache of its own; the CUDA builds of some take minutes to come.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).parent.parent
SUPPORTED = ["2.11.0", "2.13.0"]  # the lowest and the highest
CORE = (
    "signature optimizer parity state recompile not_elementwise passes around modes dynamo explain fallback kernel layouts own"
)
CORE += " extend source formula amp triton storage update steady evaluation every published whole_model combined"


def tested(version: str, folder: Path) -> bool:
    """Whether the core tests pass on a version of torch."""
    home = folder / version
    python = home / "bin" / "python"
    if not python.exists():
        venv.create(home, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "-q", f"torch=={version}", f"{ROOT}[test]"], check=True)
    environment = {**os.environ, "COMPILEDOPT_CACHE_DIR": str(home / "cache")}
    files = [str(ROOT / "tests" / f"test_{name}.py") for name in CORE.split()]
    print(f"== torch {version}", flush=True)
    return subprocess.run([python, "-m", "pytest", "-q", *files], env=environment, cwd=ROOT).returncode == 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("versions", nargs="*", default=SUPPORTED)
    parser.add_argument("--keep", type=Path, help="where the environments stay for another time")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.keep or Path(temporary)
        results = {version: tested(version, folder) for version in arguments.versions}
    for version, passed in results.items():
        print(f"torch {version}: {'passed' if passed else 'failed'}")
    return int(not all(results.values()))


if __name__ == "__main__":
    sys.exit(main())
