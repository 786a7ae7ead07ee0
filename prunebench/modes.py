"""The two ways to run an experiment."""

from enum import Enum


class Mode(Enum):
    """Members are spelt as users type them: `mode=online`."""

    replay = "replay"  # paths come from the trace bank, every cell of a grid from the same ones
    online = "online"  # pruned paths are really dropped, kept ones really resume
