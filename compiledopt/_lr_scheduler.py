"""Where the classes of `lr_scheduler` say that they stand. They inherit from torch's, by whose names registries find them a
second time (class_resolver, the short names of jsonargparse and LightningCLI), and those pass over modules with an underscore.
Pickles name this module."""

from compiledopt.lr_scheduler import *  # noqa: F403
