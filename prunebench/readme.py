"""Writes the tables of methods and engines of the README: `python -m prunebench.readme`."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from prunebench import registry
from prunebench.types import Capability

NOT_OF_ENGINES = {
    Capability.ENDPOINT,
    Capability.STEP_CHECK,
    Capability.EARLY_ANSWERS,
    Capability.OUTCOME,
}
"""What a server, a dataset, imported paths or the mode gives."""


def method_table() -> str:
    """Markdown table of every method of this repository."""
    lines = ["| method | type | reads | what it scores | source |", "|---|---|---|---|---|"]
    for name, cls in registry.methods().items():
        reads = ", ".join(f"`{c.value}`" for c in sorted(cls.requires)) or "text"
        what = (sys.modules[cls.__module__].__doc__ or "").strip().splitlines()[0].rstrip(".")
        url = re.search(r"https?://\S+", cls.paper)
        source = re.sub(r",?\s*https?://\S+", "", cls.paper)
        linked = f"[{source}]({url.group()})" if url else source
        lines.append(f"| `{name}` | {cls.type} | {reads} | {what} | {linked} |")
    return "\n".join(lines)


def engine_table() -> str:
    """Markdown table of what every engine gives with its default options."""
    engines = registry.engines()
    provides = {name: cls().provides for name, cls in engines.items()}
    lines = [
        "| | " + " | ".join(f"`{name}`" for name in engines) + " |",
        "|---|" + ":-:|" * len(engines),
    ]
    for capability in Capability:
        if capability not in NOT_OF_ENGINES:
            cells = ["yes" if capability in has else "" for has in provides.values()]
            lines.append(f"| `{capability.value}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def updated(text: str) -> str:
    """The README text with its tables renewed."""
    for name, table in (("methods", method_table), ("engines", engine_table)):
        begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
        if begin not in text or end not in text:
            raise ValueError(f"The README must contain {begin!r} and {end!r}.")
        head, rest = text.split(begin, 1)
        _, tail = rest.split(end, 1)
        text = f"{head}{begin}\n{table()}\n{end}{tail}"
    return text


def main() -> int:
    path = Path(__file__).resolve().parent.parent / "README.md"
    path.write_text(updated(path.read_text()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
