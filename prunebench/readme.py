"""Writes the method table of the README from the registry: `python -m prunebench.readme`."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from prunebench import registry

BEGIN, END = "<!-- methods: begin -->", "<!-- methods: end -->"


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


def updated(text: str) -> str:
    """The README text with its method table renewed."""
    if BEGIN not in text or END not in text:
        raise ValueError(f"The README must contain {BEGIN!r} and {END!r}.")
    head, rest = text.split(BEGIN, 1)
    _, tail = rest.split(END, 1)
    return f"{head}{BEGIN}\n{method_table()}\n{END}{tail}"


def main() -> int:
    path = Path(__file__).resolve().parent.parent / "README.md"
    path.write_text(updated(path.read_text()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
