"""Engines behind the `prunebench.backend` contract, one file each."""
