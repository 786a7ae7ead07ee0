"""Hydra configuration groups. The schemas are dataclasses; see `prunebench/config.py`."""
