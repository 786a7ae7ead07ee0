"""The ways to run an experiment."""

from enum import Enum


class Mode(Enum):
    """Members are spelt as users type them: `mode=online`."""

    replay = "replay"  # paths come from the trace bank, every cell of a grid from the same ones
    online = "online"  # pruned paths are really dropped, kept ones really resume


class Protocol(Enum):
    """What decides which paths are finished; `protocol=esc`."""

    prune = "prune"  # launch all, check at the checkpoint, resume the kept
    adaptive_consistency = (
        "adaptive_consistency"  # one path after the other, until the vote is safe
    )
    esc = "esc"  # windows of paths, until one is unanimous
    deepconf_online = "deepconf_online"  # warm-up, stop paths below its bar, stop at a consensus
