"""Which release this is."""

from importlib import metadata

try:
    VERSION = metadata.version("compiledopt")
except metadata.PackageNotFoundError:  # run from a checkout: pyproject.toml alone says which version it will be
    VERSION = "0+checkout"
