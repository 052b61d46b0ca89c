import os
import tempfile

# Before compiledopt is imported: no test reads or fills the user's cache. Kernels are shared within one run.
# tests/faults.py names a directory that many runs share.
_directory = tempfile.TemporaryDirectory(prefix="compiledopt-tests-")
os.environ["COMPILEDOPT_CACHE_DIR"] = os.environ.get("COMPILEDOPT_TESTS_CACHE_DIR") or _directory.name

import pytest  # noqa: E402
import torch  # noqa: E402


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
