"""The reader of answers as a package that stands alone, to travel with a registered adapter.

Where an adapter is served nothing of Nightowl is installed, and a module called `tasks` may be somebody else's. So
the three files that read an answer are written out under a name of their own, which holds their digest: two versions
loaded in one process each have the reader they came with.
"""

from __future__ import annotations

import inspect
from pathlib import Path

from tasks.conversations import answer, call_style, canonical
from tasks.store import digest, write_whole

_PACKAGE = __name__.rpartition(".")[0]
_SHOWN = (
    'from .answer import parse_answer\nfrom .call_style import CallStyle\n\n__all__ = ["CallStyle", "parse_answer"]\n'
)


def carry_reader(folder: Path) -> Path:
    """Write the package with `parse_answer` and `CallStyle` into a folder; returns where, its name is the package's."""
    files = {f"{module.__name__.rpartition('.')[2]}.py": module for module in (answer, call_style, canonical)}
    texts = {name: inspect.getsource(module).replace(f"from {_PACKAGE}.", "from .") for name, module in files.items()}
    texts["__init__.py"] = _SHOWN
    package = folder / f"nightowl_answers_{digest(texts)[:12]}"
    package.mkdir(parents=True)
    for name, text in texts.items():
        write_whole(package / name, text)
    return package
