"""Validate: the data gate. What a source holds becomes conversations, or is set aside with every reason.

In three passes, so that memory is bounded by a batch: rows are converted, rendered and judged one by
one; then, with the whole source known, each goes to the conversations or to quarantine; last, Great
Expectations decides on narrow frames of what was found whether the night may go on, and writes it up.

A refused source is an output as well: its pages and its quarantine are what somebody needs next.
"""

from __future__ import annotations

import shutil
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import pyarrow.parquet as pq

from tasks.conversations import CONVERSATION, Conversations, Finding, Renderer, convert, detect
from tasks.errors import BadInput, Refused, WorldFailed
from tasks.quality import RULES, Rule, applied, example, first_reasons, reasons, required_share, row_flags, settle
from tasks.recipe import Base, Kind, Quality, Recipe, Source
from tasks.sources import BaseSnapshot, Snapshot, read_rows
from tasks.store import Store, code_digest, digest, home

if TYPE_CHECKING:
    from expectations import Outcome, RowRule

UNCONVERTIBLE = Rule("unconvertible", "critical", "Every row of the source can be read as a conversation.", "source")
SET_ASIDE = Rule("set_aside", "critical", "Few enough rows are set aside, whatever the reason.", "source")
TOKENS = {"row_id": pl.String, "input_ids": pl.List(pl.Int32), "loss_mask": pl.List(pl.Boolean)}
QUARANTINE = {**CONVERSATION, "reasons": pl.List(pl.String), "detail": pl.String}


def validate(recipe: Recipe, source: Source, snapshot: Snapshot, base: BaseSnapshot, store: Store) -> Conversations:
    """A source's conversations as the recipe's base model would train on them, made unless the store has them.

    Raises Refused when the data gate stops the night (again at once when asked again), BadInput for a
    source or a template that cannot be used as given, and WorldFailed when the check itself failed.
    """
    gated = look(recipe, source, snapshot, base, store)
    _show(gated, store)
    if not gated.passed:
        raise Refused(refusal(gated, store))
    return gated


def look(recipe: Recipe, source: Source, snapshot: Snapshot, base: BaseSnapshot, store: Store) -> Conversations:
    """The same, whether the source passes or not; raises BadInput and WorldFailed as `validate` does."""
    return _gated(recipe.name, source, snapshot, recipe.base, base, recipe.quality, store)


def check(
    path_or_uri: str,
    *,
    kind: Kind,
    base: Base,
    store: Store,
    format: str | None = None,
    columns: Mapping[str, str] | None = None,
    quality: Quality | None = None,
) -> Conversations:
    """What the data gate says of one file, folder or source URI for a base model, without a recipe.

    Returns the manifest whether it passed or not; raises BadInput and WorldFailed as `validate` does.
    """
    from tasks.fetch import fetch, fetch_base

    uri = path_or_uri if "://" in path_or_uri else f"file://{Path(path_or_uri).absolute()}"
    source = Source(name="check", uri=uri, kind=kind, share=1.0, format=format, columns=columns and dict(columns))
    return _gated("check", source, fetch(source, store), base, fetch_base(base, store), quality or Quality(), store)


def refusal(gated: Conversations, store: Store) -> str:
    """Why a source stopped the night: the three worst rules with counts and examples, and where to read on."""
    stopping = [finding for finding in gated.findings if finding.stops]
    others = [finding for finding in gated.findings if not finding.stops and finding.severity != "info"]
    lines = [f"sources.{gated.source}: {'; '.join(_why(finding) for finding in stopping)}."]
    named = [finding for finding in (*stopping, *others) if finding.rows][:4]
    for finding in [finding for finding in named if finding.rule != SET_ASIDE.name][:3]:
        lines.append(f"  {finding.rule}: {finding.rows} rows ({finding.share:.1%}). {finding.explanation}")
        if finding.example:
            lines.append(f"    {finding.example}")
    folder = store.folder(gated)
    lines.append(f"  See {folder / 'docs' / 'index.html'} and {folder / 'quarantine.parquet'}.")
    return "\n".join(lines)


def _why(finding: Finding) -> str:
    if finding.rows:
        bound = f"at most {1 - finding.mostly:.1%} may" if finding.mostly < 1 else "none may"
        return f"{finding.rule}: {finding.rows} rows ({finding.share:.1%}), and {bound}"
    return f"{finding.rule}: {finding.explanation.rstrip('.')}"


def conversations_inputs(
    source: Source, snapshot: Snapshot, base: Base, model: BaseSnapshot, quality: Quality
) -> dict[str, Any]:
    """What the address of a source's conversations is the digest of."""
    return {
        "code": code_digest(
            "tasks/validate.py",
            *(
                f"tasks/quality/{part}.py"
                for part in ("rules", "turns", "calls", "text", "flags", "judgement", "examples")
            ),
            "tasks/conversations",
            "expectations",
            libraries=("polars", "great-expectations", "jsonschema-rs", "transformers", "tokenizers"),
        ),
        "source": source.name,
        "snapshot": snapshot.address,
        "kind": source.kind,
        "format": source.format,
        "columns": source.columns,
        # What the rows are rendered with; mixing asks that all sources agree on it.
        "tokenizer": digest({"base": model.address, "chat_template": base.chat_template}),
        "max_length": base.max_length,
        "quality": quality.model_dump(mode="json"),
    }


def _gated(
    night: str, source: Source, snapshot: Snapshot, base: Base, model: BaseSnapshot, quality: Quality, store: Store
) -> Conversations:
    rules = applied(quality.ignore)
    inputs = conversations_inputs(source, snapshot, base, model, quality)

    def build(work: Path) -> dict[str, Any]:
        renderer = Renderer.open(store.folder(model), base.chat_template)
        pile = _judge(source, snapshot, store.folder(snapshot), renderer, base.max_length, work / "parts")
        sorted_out = _sort_out(pile, rules, renderer, work)
        shutil.rmtree(work / "parts")
        findings = _decide(f"{night}-{source.name}", source.kind, pile, sorted_out, rules, quality, work / "docs")
        return {
            "source": source.name,
            "snapshot": snapshot.address,
            "row_kind": source.kind,
            "format": pile.format,
            "passed": not any(finding.stops for finding in findings),
            "findings": tuple(findings),
            "rows_in": pile.rows_in,
            "rows_out": sorted_out.rows_out,
            "set_aside": sorted_out.set_aside,
            "tokens": sorted_out.tokens,
            "supervised_tokens": sorted_out.supervised_tokens,
        }

    return store.make(Conversations, inputs, build)[0]


@dataclass
class _Pile:
    """A source's rows after the first pass: parts on disk, and what was found of them in memory."""

    format: str
    rows_in: int = 0
    parts: list[Path] = field(default_factory=list)
    found: pl.DataFrame = field(default_factory=pl.DataFrame)
    turns: pl.Series = field(default_factory=lambda: pl.Series(dtype=pl.Int64))
    source_rows: pl.Series = field(default_factory=lambda: pl.Series(dtype=pl.Int64))
    rejected: pl.DataFrame = field(
        default_factory=lambda: pl.DataFrame(schema={"source_row": pl.Int64, "reason": pl.String, "detail": pl.String})
    )


@dataclass
class _SortedOut:
    """What became of the rows: `counts` by rule, `reasons` a list a conversation, totals in tokens."""

    reasons: pl.Series
    counts: dict[str, int]
    examples: dict[str, str]
    set_aside: dict[str, int]
    rows_out: int = 0
    tokens: int = 0
    supervised_tokens: int = 0


def _judge(source: Source, snapshot: Snapshot, folder: Path, renderer: Renderer, max_length: int, parts: Path) -> _Pile:
    """First pass: convert, render and flag batch by batch; each batch becomes a part on disk."""
    parts.mkdir()
    pile = _Pile(format=source.format or "")
    found, turns, source_rows, rejected = [], [], [], [pile.rejected]
    for raw in read_rows(folder, snapshot):
        if not pile.format:
            # Once, on the first rows: a later batch must not be read another way.
            pile.format = detect(_as_mapped(raw, source.columns))
        rows, aside = convert(
            raw,
            source=source.name,
            revision=snapshot.revision,
            kind=source.kind,
            format=pile.format,
            columns=source.columns,
        )
        rendered = renderer.render(rows)
        found.append(row_flags(rows, rendered, special_tokens=renderer.special_tokens, max_length=max_length))
        turns.append(rows["messages"].list.len().cast(pl.Int64))
        source_rows.append(raw["source_row"])
        rejected.append(aside)
        pile.rows_in += raw.height
        pile.parts.append(parts / f"{len(pile.parts):05d}.parquet")
        pl.concat([rows, rendered.drop("row_id")], how="horizontal").write_parquet(pile.parts[-1], compression="lz4")
    if found:
        pile.found = settle(pl.concat(found))
        pile.turns, pile.source_rows = pl.concat(turns), pl.concat(source_rows)
    else:
        pile.found = pl.DataFrame(schema={"row_id": pl.String, **{rule.name: pl.Boolean for rule in RULES}})
    pile.rejected = pl.concat(rejected)
    return pile


def _as_mapped(raw: pl.DataFrame, columns: Mapping[str, str] | None) -> pl.DataFrame:
    if columns is None:
        return raw
    known = {ours: theirs for ours, theirs in columns.items() if theirs in raw.columns}
    if missing := sorted(set(columns.values()) - set(known.values())):
        raise BadInput(
            "columns", missing[0], "is not a column of the source", f"Columns: {', '.join(sorted(raw.columns))}."
        )
    return raw.select("source_row", **{ours: pl.col(theirs) for ours, theirs in known.items()})


def _sort_out(pile: _Pile, rules: Sequence[Rule], renderer: Renderer, work: Path) -> _SortedOut:
    """Second pass: every row to conversations.parquet and tokens.parquet, or to quarantine.parquet."""
    lists = reasons(pile.found, rules)
    counts = pile.found.select(pl.col(rule.name).sum() for rule in rules).row(0, named=True) if rules else {}
    rejected = Counter(pile.rejected["reason"].to_list())
    out = _SortedOut(
        reasons=lists,
        counts={name: int(rows) for name, rows in counts.items()},
        examples={},
        set_aside=dict(Counter(first_reasons(lists)) + rejected),
    )
    with (
        _Parquet(work / "conversations.parquet", CONVERSATION) as conversations,
        _Parquet(work / "tokens.parquet", TOKENS) as tokens,
        _Parquet(work / "quarantine.parquet", QUARANTINE) as quarantine,
    ):
        quarantine.write(_unconverted(pile.rejected))
        at = 0
        for part in pile.parts:
            rows = pl.read_parquet(part)
            why = lists.slice(at, rows.height)
            _collect_examples(out.examples, pile.found.slice(at, rows.height), rows, rules, renderer)
            keep = why.list.len() == 0
            kept = rows.filter(keep)
            conversations.write(kept)
            tokens.write(kept)
            quarantine.write(rows.with_columns(reasons=why, detail=pl.col("problem")).filter(~keep))
            out.rows_out += kept.height
            out.tokens += int(kept["tokens"].sum())
            out.supervised_tokens += int(kept["supervised_tokens"].sum())
            at += rows.height
    return out


def _unconverted(rejected: pl.DataFrame) -> pl.DataFrame:
    return rejected.select(
        "source_row",
        "detail",
        reasons=pl.concat_list("reason"),
        **{c: pl.lit(None) for c in CONVERSATION if c != "source_row"},
    )


def _collect_examples(
    examples: dict[str, str], found: pl.DataFrame, rows: pl.DataFrame, rules: Sequence[Rule], renderer: Renderer
) -> None:
    for rule in rules:
        at = None if rule.name in examples else found[rule.name].arg_max()
        if at is not None and found[rule.name][at]:
            row = rows.row(at, named=True)
            examples[rule.name] = example(
                rule.name, row, special_tokens=renderer.special_tokens, problem=row["problem"]
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


def _decide(
    name: str,
    kind: Kind,
    pile: _Pile,
    out: _SortedOut,
    rules: Sequence[Rule],
    quality: Quality,
    docs: Path,
) -> list[Finding]:
    """Third pass: Great Expectations on what was found. Its outcomes, as findings, are the decision."""
    from expectations import CheckFailed, RowRule, Table, check, conversations, raw

    aside = sum(out.set_aside.values())
    counts = {**out.counts, UNCONVERTIBLE.name: pile.rejected.height, SET_ASIDE.name: aside}
    if pile.rejected.height:
        out.examples[UNCONVERTIBLE.name] = "row {}, {}: {}".format(*pile.rejected.row(0))
    asked = {
        rule.name: RowRule(
            name=rule.name,
            severity=rule.severity,
            mostly=required_share(rule, quality.max_set_aside),
            explanation=rule.explanation,
            rows=counts[rule.name],
            example=out.examples.get(rule.name),
        )
        for rule in (UNCONVERTIBLE, SET_ASIDE, *rules)
    }
    kept = out.reasons.list.len() == 0
    flagged = pile.found.select("row_id", *(rule.name for rule in rules)).with_columns(
        kind=pl.lit(kind), turns=pile.turns, kept=kept.cast(pl.Int8)
    )
    tables = [
        Table(
            _raw_frame(pile, kept).to_pandas(),
            raw.suite(f"{name}-raw", rules=[asked[UNCONVERTIBLE.name], asked[SET_ASIDE.name]]),
        ),
        Table(
            flagged.to_pandas(),
            conversations.suite(
                f"{name}-conversations",
                kind=kind,
                min_rows=quality.min_rows,
                rules=[asked[rule.name] for rule in rules],
            ),
        ),
    ]
    try:
        outcomes = check(tables, history=home() / "expectations", night=name, pages=docs)
    except CheckFailed as error:
        raise WorldFailed(
            f"the data gate of sources.{name}",
            f"could not decide ({error})",
            "Nothing is known about the data, so the night stops; nothing was stored.",
        ) from error
    shutil.copyfile(docs / f"{name}-conversations.html", docs / "index.html")
    return _findings(outcomes, asked, pile.rows_in)


def _raw_frame(pile: _Pile, kept: pl.Series) -> pl.DataFrame:
    """A row of the source each: its number, whether it could be converted, and whether it was set aside."""
    converted = pile.source_rows.is_in(pile.rejected["source_row"].implode()).not_()
    frame = pl.DataFrame({"source_row": pile.source_rows, UNCONVERTIBLE.name: ~converted})
    places = frame.with_row_index("at").filter(~pl.col(UNCONVERTIBLE.name))["at"]
    aside = frame[UNCONVERTIBLE.name].scatter(places, ~kept) if frame.height else frame[UNCONVERTIBLE.name]
    return frame.with_columns(aside.alias(SET_ASIDE.name))


def _findings(outcomes: Sequence[Outcome], asked: Mapping[str, RowRule], rows_in: int) -> list[Finding]:
    findings = []
    for outcome in outcomes:
        rule = asked.get(outcome.column or "")
        if rule and outcome.rows != rule.rows:
            raise WorldFailed(
                f"the data gate of {outcome.table}",
                f"{rule.name} was broken by {rule.rows} rows, and Great Expectations counted {outcome.rows}",
                "This is a fault of Nightowl or Great Expectations, not of the data.",
            )
        if rule and rule.rows:
            findings.append(
                Finding(
                    rule=rule.name,
                    severity=rule.severity,
                    rows=rule.rows,
                    share=rule.rows / rows_in,
                    mostly=rule.mostly,
                    stops=not outcome.success and rule.severity == "critical",
                    explanation=rule.explanation,
                    example=rule.example,
                )
            )
        elif not outcome.success:
            # An expectation on the table as a whole: its size, its columns, their types.
            findings.append(
                Finding(
                    rule="min_rows" if outcome.column == "kept" else outcome.expectation.removeprefix("expect_"),
                    severity="critical",
                    rows=outcome.rows,
                    share=outcome.rows / rows_in if rows_in else 0.0,
                    mostly=1.0,
                    stops=True,
                    explanation=outcome.description,
                )
            )
    rank = {"critical": 0, "warning": 1, "info": 2}
    return sorted(findings, key=lambda finding: (not finding.stops, rank[finding.severity], -finding.rows))


def _show(gated: Conversations, store: Store) -> None:
    """The findings as a Markdown artifact of the Prefect run, where there is one."""
    if "prefect" not in sys.modules:
        return
    from prefect.context import FlowRunContext, TaskRunContext

    if FlowRunContext.get() is None and TaskRunContext.get() is None:
        return
    from prefect.artifacts import create_markdown_artifact

    create_markdown_artifact(markdown=markdown(gated, store), key=f"data-gate-{gated.source}".replace("_", "-"))


def markdown(gated: Conversations, store: Store) -> str:
    """What the gate found, as a Markdown table."""
    lines = [
        f"**{gated.source}**: {gated.rows_out} of {gated.rows_in} rows pass; "
        + ("the night goes on." if gated.passed else "**the night stops.**"),
        "",
        "| rule | severity | rows | share | stops | example |",
        "|---|---|---:|---:|---|---|",
    ]
    for finding in gated.findings:
        text = (finding.example or "").replace("|", "\\|").replace("<", "&lt;")
        stops = "yes" if finding.stops else ""
        lines.append(
            f"| {finding.rule} | {finding.severity} | {finding.rows} | {finding.share:.1%} | {stops} | {text} |"
        )
    lines += ["", f"Pages: `{store.folder(gated) / 'docs' / 'index.html'}`"]
    return "\n".join(lines)
