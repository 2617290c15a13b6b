"""What the row rules detect, as tables: each class of defects planted in clean conversations, and the real files.

    python tests/tasks/quality/detection.py

Not run by pytest: test_flags.py and test_validate.py assert what is shown here. The real files are those of
NIGHTOWL_SHARED_DATA (by default ../shared/data); without them that table is left out.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

import corpus  # noqa: E402

from tasks.conversations import convert  # noqa: E402
from tasks.errors import BadInput  # noqa: E402
from tasks.quality import RULES, flags, main_kind  # noqa: E402
from tasks.recipe import Quality  # noqa: E402

ROWS, SHARE = 400, 0.05
SETTINGS: dict[str, Any] = {"special_tokens": corpus.SPECIAL, "max_length": corpus.MAX_LENGTH}


def planted() -> None:
    """Each class in each of its kinds: rows planted, caught by the rule meant for it, and others that it flagged."""
    print(f"{'class of defect':22} {'rule':26} {'planted':>7} {'caught':>6} {'false':>5}  what it is")
    totals = [0, 0, 0]
    for name, defect in corpus.DEFECTS.items():
        counts = [0, 0, 0]
        for kind in defect.kinds:
            rows, at = corpus.planted(kind, defect, ROWS, SHARE, seed=11)
            found = set(flags(*corpus.frames(rows), **SETTINGS, quality=corpus.ALL)[defect.rule].arg_true())
            # Some clean tool conversations call no tool, and are reported as that.
            false = found - set(at) if defect.rule != "tools_unused" else set()
            counts = [have + new for have, new in zip(counts, (len(at), len(found & set(at)), len(false)), strict=True)]
        totals = [have + new for have, new in zip(totals, counts, strict=True)]
        print(f"{name:22} {defect.rule:26} {counts[0]:7} {counts[1]:6} {counts[2]:5}  {defect.what}")
    print(f"{len(corpus.DEFECTS)} classes {'':38} {totals[0]:7} {totals[1]:6} {totals[2]:5}")
    for kind in ("chat", "reasoning", "tool"):
        found = flags(*corpus.frames(corpus.clean(kind, 5_000, seed=13)), **SETTINGS, quality=corpus.ALL)
        alarms = found.select(pl.any_horizontal(rule.name for rule in RULES if rule.name != "tools_unused"))
        print(f"clean {kind}: {alarms.to_series().sum()} of 5,000 rows flagged by any rule")


def real(folder: Path) -> None:
    """What the default rules find in each real file that holds conversations."""
    for file in sorted(folder.rglob("*.json*")):
        raw = pl.DataFrame(list(records(file)), infer_schema_length=None).with_row_index("source_row")
        raw = raw.with_columns(pl.col("source_row").cast(pl.Int64))
        try:
            rows, aside = convert(raw, source="real", revision="", kind="chat")
        except BadInput:
            continue  # questions alone, or answers to them
        rows = rows.with_columns(kind=pl.lit(main_kind(rows)))
        length = pl.lit(1, pl.Int32)
        rendered = rows.select("row_id", problem=pl.lit(None, pl.String), tokens=length, supervised_tokens=length)
        found = flags(rows, rendered, **SETTINGS, quality=Quality())
        counts = {rule.name: n for rule in RULES if (n := int(found[rule.name].sum()))}
        told = ", ".join(f"{rule} {n}" for rule, n in sorted(counts.items(), key=lambda item: -item[1]))
        unread = f"; {aside.height} cannot be read" if aside.height else ""
        print(f"{file.relative_to(folder)}: {rows.height} rows, {rows['kind'][0]}{unread}: {told or 'nothing'}")


def records(file: Path) -> Iterator[dict[str, Any]]:
    """The objects of a file, values that are nested deeper than a message as JSON text."""
    text = file.read_text(encoding="utf-8")
    whole = json.loads(text) if text.lstrip().startswith("[") else [json.loads(line) for line in text.splitlines()]
    for record in whole:
        yield {k: v if isinstance(v, str | None) or k == "conversations" else json.dumps(v) for k, v in record.items()}


if __name__ == "__main__":
    planted()
    place = Path(os.environ.get("NIGHTOWL_SHARED_DATA", ROOT.parent / "shared" / "data"))
    if place.is_dir():
        real(place)
