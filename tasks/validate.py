"""Validate: the data gate. What a source holds becomes conversations, or is set aside with every reason.

In three passes, so that memory is bounded by a batch: rows are converted, rendered and judged one by
one; then, with the whole source known, each goes to the conversations or to quarantine; last, Great
Expectations decides on narrow frames of what was found whether the night may go on, and writes it up.

A refused source is an output as well: its pages and its quarantine are what somebody needs next.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import orjson
import polars as pl
import pyarrow.parquet as pq
from pydantic import ValidationError

from tasks.compare import compare
from tasks.conversations import (
    CONVERSATION,
    Conversations,
    Judge,
    Preparation,
    Render,
    Renderer,
    convert,
    gather,
    prepare,
    write_rows,
)
from tasks.errors import BadInput, Refused
from tasks.quality import (
    CHANGES,
    NIGHT_RULES,
    RULES,
    Change,
    Found,
    Rule,
    applied,
    decide,
    example,
    first_reasons,
    main_kind,
    markdown,
    mended,
    profile_of,
    reasons,
    refusal,
    row_flags,
    settle,
)
from tasks.recipe import Base, Kind, Quality, Recipe, Source
from tasks.sources import COLUMNS, BaseSnapshot, Snapshot, read_batches, redacted
from tasks.store import Store, code_digest, digest, file_digest, write_whole

LOOKED_AT = 1_000  # rows by which a kind that is not given is told
ROW_CODE = (
    "rules", "turns", "calls", "text", "sensitive", "language", "flags", "mending", "judgement", "examples", "profile",
    "decision",
)  # fmt: skip
LIBRARIES = (
    "polars", "great-expectations", "jsonschema-rs", "jinja2", "transformers", "tokenizers", "gigatoken",
    "lingua-language-detector", "phonenumbers", "detect-secrets",
)  # fmt: skip
QUARANTINE = {**CONVERSATION, "reasons": pl.List(pl.String), "detail": pl.String}


def validate(
    recipe: Recipe, source: Source, snapshot: Snapshot, base: BaseSnapshot, store: Store
) -> tuple[Conversations, Change]:
    """A source's conversations as the recipe's base model would train on them, made unless the store has them.

    With them comes what has changed about the source since the last night that passed. Raises Refused when the data
    gate stops the night (again at once when asked again), BadInput for a source or a template that cannot be used as
    given, and WorldFailed when the check itself failed.
    """
    gated, change = look(recipe, source, snapshot, base, store)
    _show(gated, change, store)
    if not (gated.passed and change.passed):
        raise Refused(refusal(gated, change, store.folder(gated)))
    return gated, change


def look(
    recipe: Recipe,
    source: Source,
    snapshot: Snapshot,
    base: BaseSnapshot,
    store: Store,
    history: Path | None = None,
) -> tuple[Conversations, Change]:
    """The same, whether the source passes or not; raises BadInput and WorldFailed as `validate` does.

    `history`: folder of the pages of all nights; null: the home's.
    """
    gated = _gated(recipe.name, source, snapshot, recipe.base, base, recipe.quality, store, history)
    return gated, compare(recipe, gated, store, history)


def check(
    path_or_uri: str,
    *,
    base: Base,
    store: Store,
    kind: Kind | None = None,
    format: str | None = None,
    columns: Mapping[str, str] | None = None,
    query: str | None = None,
    cursor: Sequence[str] = (),
    quality: Quality | None = None,
) -> Conversations:
    """What the data gate says of one file, folder or source URI for a base model, without a recipe.

    `kind`: null: what most of the first rows show. `query` and `cursor` are what a database is read by (see
    `Source`). Returns the manifest whether it passed or not; raises BadInput and WorldFailed as `validate` does.
    """
    from tasks.fetch import fetch, fetch_base

    uri = path_or_uri if "://" in path_or_uri else f"file://{quote(str(Path(path_or_uri).absolute()))}"
    # Called after what is looked at, so that the pages of all checks tell one from another.
    name = re.sub("[^a-z0-9]+", "-", redacted(uri).rstrip("/").rpartition("/")[2].lower().partition(".")[0]).strip("-")
    given: dict[str, Any] = {
        "name": name[:40].strip("-") or "check",
        "uri": uri,
        "kind": kind or "chat",
        "share": 1.0,
        "format": format,
    }
    given |= {"columns": columns and dict(columns), "query": query, "cursor": tuple(cursor)}
    try:
        source = Source.model_validate(given)
    except ValidationError as error:
        problem = error.errors()[0]["msg"].removeprefix("Value error, ").removeprefix(f"source {given['name']!r} ")
        raise BadInput("DATA", redacted(uri), problem, "See `nightowl check --help`.") from error
    snapshot = fetch(source, store)
    if kind is None:
        source = source.model_copy(update={"kind": _shown(source, snapshot, store)})
    return _gated("check", source, snapshot, base, fetch_base(base, store), quality or Quality(), store)


def _shown(source: Source, snapshot: Snapshot, store: Store) -> Kind:
    """The kind that most of a source's first rows show; chat where there are none."""
    batch = next(read_batches(store.folder(snapshot), snapshot), None)
    if batch is None:
        return "chat"
    first = batch.frame(np.arange(min(len(batch), LOOKED_AT)))
    about = {"source": source.name, "revision": snapshot.revision}
    return main_kind(convert(first, **about, kind="chat", format=source.format, columns=source.columns)[0])


def conversations_inputs(
    source: Source, snapshot: Snapshot, base: Base, model: BaseSnapshot, quality: Quality
) -> dict[str, Any]:
    """What the address of a source's conversations is the digest of."""
    return {
        "code": code_digest(
            "tasks/validate.py",
            *(f"tasks/quality/{part}.py" for part in ROW_CODE),
            "tasks/conversations",
            "expectations",
            libraries=LIBRARIES,
        ),
        "source": source.name,
        "snapshot": snapshot.address,
        "kind": source.kind,
        "format": source.format,
        "columns": source.columns,
        # What the rows are rendered with; mixing asks that all sources agree on it.
        "tokenizer": digest({"base": model.address, "chat_template": base.chat_template}),
        "max_length": base.max_length,
        "quality": _on_rows(quality),
    }


def _on_rows(quality: Quality) -> dict[str, Any]:
    """What of the gate's settings is about rows: what a source is held to beside another night is not."""
    names = {rule.name for rule in NIGHT_RULES}
    told = quality.model_dump(mode="json", exclude={"drift"})
    told["ignore"] = [name for name in told["ignore"] if name not in names]
    told["rules"] = {name: setting for name, setting in told["rules"].items() if name not in names}
    return told


def _line(inputs: Mapping[str, Any], snapshot: Path) -> str:
    """What a raw row's conversation, tokens and flags depend on beside the row: nights that agree share rows."""
    reading = code_digest(*(f"tasks/sources/{part}.py" for part in ("columns", "pieces", "records", "rows")))
    rows = {**inputs, "snapshot": None, "columns_read": file_digest(snapshot / COLUMNS), "reading": reading}
    of_all_rows = ("min_rows", "max_set_aside", "ignore", "rules")
    return digest({**rows, "quality": {k: v for k, v in inputs["quality"].items() if k not in of_all_rows}})


def _gated(
    night: str,
    source: Source,
    snapshot: Snapshot,
    base: Base,
    model: BaseSnapshot,
    quality: Quality,
    store: Store,
    history: Path | None = None,
) -> Conversations:
    rules = applied(quality)
    inputs = conversations_inputs(source, snapshot, base, model, quality)
    line = _line(inputs, store.folder(snapshot))

    def build(work: Path) -> dict[str, Any]:
        renderer = Renderer.open(store.folder(model), base.chat_template)
        earlier = store.latest(Conversations, line)
        taken = store.folder(earlier) if earlier else None
        judge = partial(_judged, quality=quality, special_tokens=renderer.special_tokens, max_length=base.max_length)
        pile = _judge(source, snapshot, store.folder(snapshot), renderer, judge, work, taken)
        regions = quality.sensitive.phone_regions
        sorted_out = _sort_out(pile, rules, renderer, source, snapshot.revision, work, regions)
        changed = pile.changed
        changed.write_parquet(work / "changed.parquet")
        columns = orjson.loads((store.folder(snapshot) / COLUMNS).read_bytes())
        looks = profile_of(sorted_out.kept, list(columns), inputs["tokenizer"])
        write_whole(work / "profile.json", looks.model_dump_json())
        found = _found(pile, sorted_out)
        name = f"{night}-{source.name}"
        findings = decide(name, found, rules, quality, work / "docs", history)
        return {
            "source": source.name,
            "snapshot": snapshot.address,
            "row_kind": source.kind,
            "format": pile.prepared.format,
            "encoding": pile.prepared.encoding,
            "passed": not any(finding.stops for finding in findings),
            "findings": tuple(findings),
            "rows_in": pile.facts.height,
            "rows_out": sorted_out.kept.height,
            "set_aside": sorted_out.set_aside,
            "changed": dict(changed["change"].value_counts(sort=True).iter_rows()),
            "answers": int(sorted_out.kept["answers"].sum()),
            "trained_answers": int(sorted_out.kept["trained_turns"].sum()),
            "tokens": int(sorted_out.kept["tokens"].sum()),
            "supervised_tokens": int(sorted_out.kept["supervised_tokens"].sum()),
        }

    gated, _ = store.make(Conversations, inputs, build)
    store.set_latest(line, gated)
    return gated


@dataclass
class _Pile:
    """A source's rows after the first pass: segments on disk, and what was found of the rows in memory.

    `facts`: a line a row of the source; `found`: the flags of those that could be converted.
    """

    prepared: Preparation
    facts: pl.DataFrame
    found: pl.DataFrame

    @property
    def rejected(self) -> pl.DataFrame:
        """The rows that could not be converted: source_row, reason, detail."""
        return self.facts.filter(pl.col("reason").is_not_null()).select("source_row", "reason", "detail")

    @property
    def changed(self) -> pl.DataFrame:
        """What was changed about rows (CHANGES)."""
        if "changes" not in self.facts.columns:
            return pl.DataFrame(schema=CHANGES)
        rows = self.facts.filter(pl.col("changes").is_not_null())
        return rows.select("source_row", "row_id", "was", change="changes").explode("change").cast(CHANGES)  # type: ignore[arg-type]


@dataclass
class _SortedOut:
    """What became of the rows: `reasons` a list a conversation; `counts`, and `examples` by row number and text, by
    rule; `kept`: the facts of the rows that were."""

    reasons: pl.Series
    counts: dict[str, int]
    examples: dict[str, tuple[int, str]]
    set_aside: dict[str, int]
    kept: pl.DataFrame


def _judge(
    source: Source, snapshot: Snapshot, folder: Path, renderer: Renderer, judge: Judge, work: Path, earlier: Path | None
) -> _Pile:
    """First pass: convert, render and flag batch by batch, but for rows that an earlier night has dealt with."""
    prepared = prepare(
        lambda: read_batches(folder, snapshot),
        renderer,
        judge,
        work,
        kind=source.kind,
        format=source.format,
        columns=source.columns,
        earlier=earlier,
    )
    facts = prepared.facts(work)
    converted = facts.filter(pl.col("reason").is_null())
    if converted.is_empty():
        found = pl.DataFrame(schema={"row_id": pl.String, **{rule.name: pl.Boolean for rule in RULES}})
    else:
        found = settle(converted)
    return _Pile(prepared, facts, found)


def _judged(
    rows: pl.DataFrame, render: Render, quality: Quality, **settings: Any
) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """Conversations as they will be trained on, rendered, and with each its flags and what was changed."""
    rows, rendered, changed = mended(rows, render, quality, settings["max_length"])
    found = row_flags(rows, rendered, quality=quality, **settings).drop("row_id")
    changes = changed.group_by("source_row").agg(pl.col("was").first(), changes=pl.col("change"))
    told = rows.select("source_row").join(changes, on="source_row", how="left", maintain_order="left")
    return rows, rendered, pl.concat([found, told.drop("source_row")], how="horizontal")


def _sort_out(
    pile: _Pile,
    rules: Sequence[Rule],
    renderer: Renderer,
    source: Source,
    revision: str,
    work: Path,
    regions: Sequence[str] = (),
) -> _SortedOut:
    """Second pass: which rows are kept, which go to quarantine.parquet, and an example of what each rule found."""
    lists = reasons(pile.found, rules)
    counts = pile.found.select(pl.col(rule.name).sum() for rule in rules).row(0, named=True) if rules else {}
    converted = pile.facts["reason"].is_null()
    places = converted.arg_true()
    kept = pl.zeros(len(converted), pl.Int8, eager=True).cast(pl.Boolean).scatter(places, lists.list.len() == 0)
    index = pile.prepared.index.with_columns(kept=kept)
    about = {"source": source.name, "revision": revision, "kind": source.kind}
    write_rows(work, index, pile.prepared.segments, **about)

    example_of = {rule.name: at for rule in rules if (at := pile.found[rule.name].arg_max()) is not None}
    example_of = {name: at for name, at in example_of.items() if pile.found[name][at]}
    shown = index[places[sorted(set(example_of.values()))]] if example_of else index.clear()
    looked_at = {row["source_row"]: row for rows in _whole(pile, shown, about, work) for row in rows.to_dicts()}
    examples = {
        name: (
            row["source_row"],
            example(name, row, special_tokens=renderer.special_tokens, problem=row["problem"], phone_regions=regions),
        )
        for name, at in example_of.items()
        if (row := looked_at[index["source_row"][places[at]]])
    }
    with _Parquet(work / "quarantine.parquet", QUARANTINE) as quarantine:
        quarantine.write(_unconverted(pile.rejected))
        aside = index[places].with_columns(reasons=lists).filter(~pl.col("kept"))
        for rows in _whole(pile, aside, about, work):
            quarantine.write(rows.with_columns(detail=pl.col("problem")))
    return _SortedOut(
        reasons=lists,
        counts={name: int(rows) for name, rows in counts.items()},
        examples=examples,
        set_aside=dict(Counter(first_reasons(lists)) + Counter(pile.rejected["reason"].to_list())),
        kept=pile.facts.filter(kept),
    )


def _whole(pile: _Pile, index: pl.DataFrame, about: Mapping[str, str], work: Path) -> Iterator[pl.DataFrame]:
    """Rows with all that a conversation has, in the index's order, and the problem that rendering them met."""
    columns = ("row_id", "messages", "tools", "problem")
    for rows in gather(work, pile.prepared.segments, index, columns):
        yield rows.with_columns(**{name: pl.lit(value) for name, value in about.items()})


def _unconverted(rejected: pl.DataFrame) -> pl.DataFrame:
    return rejected.select(
        "source_row",
        "detail",
        reasons=pl.concat_list("reason"),
        **{c: pl.lit(None) for c in CONVERSATION if c != "source_row"},
    )


class _Parquet:
    """A Parquet file written batch by batch, with a schema of its own whatever the batches carry."""

    def __init__(self, path: Path, schema: Mapping[str, Any]) -> None:
        self._schema = pl.Schema(schema)
        self._writer = pq.ParquetWriter(path, pl.DataFrame(schema=self._schema).to_arrow().schema, compression="zstd")

    def __enter__(self) -> _Parquet:
        return self

    def write(self, rows: pl.DataFrame) -> None:
        if rows.height:
            self._writer.write_table(rows.select(self._schema.names()).cast(self._schema).to_arrow())

    def __exit__(self, *_: object) -> None:
        self._writer.close()


def _found(pile: _Pile, out: _SortedOut) -> Found:
    """What the third pass decides on."""
    kept = out.reasons.list.len() == 0
    counts = {**out.counts, "unconvertible": pile.rejected.height, "set_aside": sum(out.set_aside.values())}
    if pile.rejected.height:
        row, reason, detail = pile.rejected.row(0)
        out.examples["unconvertible"] = (row, f"{reason}: {detail}")
    turns = pile.facts.filter(pl.col("reason").is_null())["turns"]
    return Found(_raw_frame(pile, kept), pile.found.with_columns(turns=turns, kept=kept), counts, out.examples)


def _raw_frame(pile: _Pile, kept: pl.Series) -> pl.DataFrame:
    """A row of the source each: its number, whether it could be converted, and whether it was set aside."""
    frame = pile.facts.select("source_row", pl.col("reason").is_not_null().alias("unconvertible"))
    places = (~frame["unconvertible"]).arg_true()
    aside = frame["unconvertible"].scatter(places, ~kept) if frame.height else frame["unconvertible"]
    return frame.with_columns(aside.alias("set_aside"))


def _show(gated: Conversations, change: Change, store: Store) -> None:
    """The findings as a Markdown artifact of the Prefect run, where there is one."""
    if "prefect" not in sys.modules:
        return
    from prefect.context import FlowRunContext, TaskRunContext

    if FlowRunContext.get() is None and TaskRunContext.get() is None:
        return
    from prefect.artifacts import create_markdown_artifact

    told = markdown(gated, change, store.folder(gated))
    create_markdown_artifact(markdown=told, key=f"data-gate-{gated.source}".replace("_", "-"))
