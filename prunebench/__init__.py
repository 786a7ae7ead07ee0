"""prunebench: compare path-pruning signals for parallel reasoning, one file per method."""

__version__ = "0.1.0"
