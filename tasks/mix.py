"""Mix: gated conversations become splits that are what they say.

In order: duplicates within and across sources are set aside, prompts are split by their hash, each source is
thinned to its share of supervised tokens, and the splits are written in an order that depends on the seed
alone. Only an index (a few numbers and a prompt a row) is held in memory; the rows themselves are streamed.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from tasks.conversations import Conversations
from tasks.errors import BadInput, Refused, WorldFailed
from tasks.evaluation import benchmark_prompts
from tasks.mixture import (
    EXCERPT,
    SPLITS,
    TOLERANCE,
    Index,
    SharePart,
    Split,
    TokenisedMixture,
    allot,
    asked_shares,
    draw_composition,
    excerpts,
    gather,
    leaks,
    other_side,
    overlaps,
    something_left,
    split_of,
    write_page,
    write_splits,
)
from tasks.quality import Prefixes, benchmark_questions, exact_duplicates, from_word, near_duplicates, near_twins
from tasks.recipe import Recipe
from tasks.store import Store, code_digest, digest, file_digest, home

NEAR_DUPLICATE = "near-duplicate"
OTHER_SPLIT = "near prompts of another split"
ABOVE_SHARE = "above share"
# A row that is set aside: which row it goes for, why, and whether it is shown how that one begins.
ASIDE = pl.Schema({"row": pl.UInt32, "twin": pl.UInt32, "reason": pl.String, "detail": pl.String, "shown": pl.Boolean})


def mix(
    recipe: Recipe, conversations: Sequence[Conversations], store: Store, history: Path | None = None
) -> TokenisedMixture:
    """Splits of a recipe's gated sources, made unless the store has them.

    `conversations`: one for each source of the recipe, in any order; the recipe's order ranks them, and of
    twins the better-ranked source keeps its copy. `history`: folder of the pages of all nights; null: the home's.

    Raises BadInput when a source has nothing left or a share cannot be reached, Refused for a source that did
    not pass the data gate, WorldFailed when the store's files are damaged or cannot be written.
    """
    ranked = _ranked(recipe, conversations)
    inputs = mixture_inputs(recipe, conversations)
    folders = {name: store.folder(one) for name, one in ranked.items()}
    carried = {
        "recipe": recipe.name,
        "chat_template": digest(recipe.base.chat_template),
        "tokenizer": _one_of(ranked, "tokenizer"),
    }
    history = history or home() / "expectations"
    manifest, _ = store.make(TokenisedMixture, inputs, lambda work: carried | _build(recipe, folders, work, history))
    return manifest


def mixture_inputs(recipe: Recipe, conversations: Sequence[Conversations]) -> dict[str, Any]:
    """What the address of a recipe's mixture is the digest of. Raises as `mix` does for what it is given."""
    ranked = _ranked(recipe, conversations)
    return {
        "code": code_digest(
            "tasks/mix.py",
            "tasks/mixture",
            "expectations",
            *(f"tasks/evaluation/{module}.py" for module in ("benchmarks", "calls", "choice")),
            *(f"tasks/quality/{module}.py" for module in ("contamination", "duplicates", "near", "words")),
            libraries=("polars", "pyarrow", "matplotlib", "numpy", "great-expectations"),
        ),
        "recipe": recipe.name,
        "mixture": recipe.mixture.model_dump(mode="json"),
        "sources": [
            {"name": name, "share": source.share, "conversations": one.address}
            for (name, one), source in zip(ranked.items(), recipe.sources, strict=True)
        ],
        "benchmarks": [_benchmark_digest(path) for path in recipe.mixture.benchmarks],
        "suites": {place: digest(questions.to_list()) for place, questions in _suite_questions(recipe).items()},
        "held_out_kinds": sorted({suite.kind for suite in recipe.evaluation.suites if suite.kind}),
    }


def _build(recipe: Recipe, folders: Mapping[str, Path], work: Path, history: Path) -> dict[str, Any]:
    settings = recipe.mixture
    scratch = work / "words"
    scratch.mkdir()
    benchmarks = {path: benchmark_questions(path) for path in settings.benchmarks}
    benchmarks = _suite_questions(recipe) | benchmarks
    questions = pl.concat([pl.Series([], dtype=pl.String), *(series.alias("") for series in benchmarks.values())])
    index = gather(folders, settings.seed, scratch, questions)
    repeated = _duplicates(recipe, index)
    kept = index.rows.join(repeated, on="row", how="anti", maintain_order="left")
    kept = kept.with_columns(split_of(kept["question"], test=settings.test, validation=settings.validation))
    prompts = None
    if settings.near_duplicates is not None:
        compared = np.ones(index.asked.rows, bool)
        compared[repeated["row"].to_numpy()] = False
        prompts = Prefixes.of(index.asked, settings.near_duplicates, compared)
    astray = _astray(index, kept, prompts)
    kept = kept.join(astray, on="row", how="anti", maintain_order="left")
    something_left(index.rows, kept, pl.concat([repeated, astray]))
    _holds_out(recipe, kept)
    given_away = _given_away(recipe, index, kept, prompts, benchmarks)

    train = kept.filter(split="train").join(given_away, on="row", how="anti").sort("take", "row_id")
    something_left(index.rows, train, pl.concat([repeated, astray, given_away]))
    train, above, parts, limit = _shared(recipe, train)
    train = train.sort("order", "row_id", "repeat")
    # Held-out rows come in the order of their hash: the first n of them stay the first n as data grows.
    held_out = kept.filter(pl.col("split") != "train").sort("fixed_order", "row_id").with_columns(repeat=pl.lit(1))
    chosen = pl.concat([train, held_out.select(train.columns)]).with_columns(place=pl.int_range(pl.len()).over("split"))
    write_splits(chosen.select("source", "at", "repeat", "split", "place"), folders, work)
    leaked = leaks(work, index, settings.near_duplicates)
    aside = _told(pl.concat([repeated, astray, given_away, above]), index)
    shutil.rmtree(scratch)
    _check(recipe, chosen, parts, leaked, work / "docs", history)

    set_aside = aside.join(index.rows.select("row", "row_id", "source"), on="row").sort("row")
    set_aside.select("row_id", "source", "reason", "detail").write_parquet(
        work / "set_aside.parquet", compression="zstd", statistics=False
    )
    draw_composition(index.rows, chosen, set_aside, parts, settings.measure, work)
    write_page(recipe.name, parts, settings.measure, chosen, set_aside, work)
    distinct = chosen["row"].n_unique()
    return {
        "rows_in": index.rows.height,
        "rows_out": distinct,
        "repeated": chosen.height - distinct,
        "set_aside": dict(aside.group_by("reason").len().sort("reason").iter_rows()),
        "splits": {name: _summary(chosen.filter(split=name)) for name in SPLITS},
        "shares": parts,
        "measure": settings.measure,
        "limited_by": limit,
        "clusters": _clusters(index.rows, repeated, work),
    }


def _check(
    recipe: Recipe,
    chosen: pl.DataFrame,
    parts: Mapping[str, SharePart],
    leaked: pl.DataFrame,
    docs: Path,
    history: Path,
) -> None:
    """Great Expectations on what was written, with its pages in `docs`; raises Refused where it says no."""
    from expectations import PAGES, CheckFailed, Table, check, mixture

    settings, name = recipe.mixture, f"{recipe.name}-mixture"
    rows = chosen.select(
        pl.col("split", "source", "kind").cast(pl.Categorical),
        *("tokens", "supervised", "repeat"),
        again=pl.struct("row_id", "repeat").is_duplicated(),
        leak=(pl.col("split") != "test") & pl.col("row_id").is_in(leaked["row_id"].implode()),
    )
    reached = pl.DataFrame([{"source": n, "asked": p.asked, "reached": p.reached} for n, p in parts.items()])
    suite = mixture.suite(
        name,
        splits=[split for split in SPLITS if split != "validation" or settings.validation],
        sources=list(parts),
        rows=chosen.height,
        repeats=settings.repeats,
        max_length=None if recipe.quality.over_length == "keep" else recipe.base.max_length,
    )
    shares = mixture.shares(f"{name}-shares", tolerance=TOLERANCE, measure=settings.measure)
    off = reached.with_columns(off=(pl.col("reached") - pl.col("asked")).abs())
    tables = [Table(rows.to_pandas(), suite), Table(off.to_pandas(), shares)]
    try:
        outcomes = check(tables, history=history, night=name, pages=docs)
    except CheckFailed as error:
        raise WorldFailed(
            "the check of the mixture",
            f"could not decide ({error})",
            "Nothing is known about the splits, so the night stops; nothing was stored.",
        ) from error
    if failed := [outcome for outcome in outcomes if outcome.severity == "critical" and not outcome.success]:
        lines = [f"  {outcome.description} {outcome.rows or ''}".rstrip() for outcome in failed]
        lines += [f"    {row} has {how} {twin}" for row, twin, how in leaked.head(3).iter_rows()]
        raise Refused("\n".join(["the mixture is not what it should be:", *lines, f"  See {history / PAGES}."]))


def _duplicates(recipe: Recipe, index: Index) -> pl.DataFrame:
    """Rows that repeat a better-ranked one, as ASIDE."""
    exact = exact_duplicates(index.rows, keep_other_answers=recipe.mixture.same_prompt == "all")
    found = [exact.with_columns(detail=pl.lit(""), shown=pl.lit(False)).select(*ASIDE)]
    if (threshold := recipe.mixture.near_duplicates) is not None:
        left = np.ones(index.rows.height, bool)
        left[exact["row"].to_numpy()] = False
        near = near_duplicates(Prefixes.of(index.said, threshold, left))
        alike = pl.format("{} alike: ", pl.col("jaccard").round(3))
        found.append(near.with_columns(reason=pl.lit(NEAR_DUPLICATE), detail=alike, shown=pl.lit(True)).select(*ASIDE))
    return pl.concat(found)


def _clusters(rows: pl.DataFrame, repeated: pl.DataFrame, work: Path) -> dict[str, int]:
    """Write clusters.parquet: the rows that say the same, each cluster with the row that was kept; their counts."""
    twins = repeated.select("row", "twin")
    # The twin of an exact duplicate may itself have gone as a near-duplicate; that one's twin has stayed.
    higher = twins.rename({"row": "twin", "twin": "higher"})
    twins = twins.join(higher, on="twin", how="left").select("row", cluster=pl.coalesce("higher", "twin"))
    first = twins.select("cluster", row="cluster").unique()
    members = pl.concat([first, twins.select("cluster", "row")]).join(rows.select("row", "row_id", "source"), on="row")
    members = members.with_columns(kept=pl.col("row") == pl.col("cluster")).sort("cluster", "row")
    members = members.with_columns(cluster=pl.col("cluster").rle_id())
    members.select("cluster", "row_id", "source", "kept").write_parquet(
        work / "clusters.parquet", compression="zstd", statistics=False
    )
    largest = members.group_by("cluster").len()["len"].max()
    return {"clusters": first.height, "rows": members.height, "largest": int(largest or 0)}  # type: ignore[arg-type]


def _astray(index: Index, kept: pl.DataFrame, prompts: Prefixes | None) -> pl.DataFrame:
    """Rows whose prompt is near others of which most are in another split, and validation rows whose prompt is still
    near one of the test split's, as ASIDE."""
    if prompts is None:
        return pl.DataFrame(schema=ASIDE)

    def these(rows: pl.DataFrame) -> np.ndarray:
        mask = np.zeros(index.asked.rows, bool)
        mask[rows["row"].to_numpy()] = True
        return mask

    astray = other_side(kept.select("row", "split"), near_duplicates(prompts, these(kept)))
    left = kept.join(astray, on="row", how="anti")
    near = near_twins(prompts, these(left.filter(split="validation")), these(left.filter(split="test")))
    both = pl.concat([astray, near.select("row", "twin", split=pl.lit("test"))])
    place = pl.format("in {}: ", "split")
    return both.with_columns(reason=pl.lit(OTHER_SPLIT), detail=place, shown=pl.lit(True)).select(*ASIDE)


def _given_away(
    recipe: Recipe, index: Index, kept: pl.DataFrame, prompts: Prefixes | None, benchmarks: Mapping[str, pl.Series]
) -> pl.DataFrame:
    """Training rows that hold a held-out or a benchmark question, as ASIDE."""
    rows = index.rows.height
    held_out = kept.filter(pl.col("split") != "train")["row"].to_numpy()
    items = np.concatenate([held_out, np.arange(rows, index.asked.rows)])
    found = overlaps(index, kept.filter(split="train")["row"], items, prompts, recipe.mixture)
    told = []
    for row, item, how, degree, at in found.iter_rows():
        if item < rows:
            told.append((row, item, f"{how} a held-out question", f"{degree:.0%}: ", True))
        else:
            place, text = _benchmark_item(item - rows, benchmarks)
            common = f"{'… ' if at else ''}{from_word(text, at)[:EXCERPT]}"
            told.append((row, None, f"{how} a benchmark question", f"{degree:.0%}: {place}: {common}", False))
    return pl.DataFrame(told, schema=ASIDE, orient="row")


def _told(aside: pl.DataFrame, index: Index) -> pl.DataFrame:
    """The rows set aside (ASIDE), with a `detail` that names their twins and, where that is shown, how they begin."""
    begun = excerpts(index, aside.filter("shown")["twin"].unique()).rename({"row": "twin"})
    names = index.rows.select(twin="row", name=pl.format("{}, source row {}, {}", "source", "source_row", "row_id"))
    named = aside.join(names, on="twin", how="left").join(begun, on="twin", how="left")
    text = pl.when("shown").then(pl.format(": {}", "text")).otherwise(pl.lit(""))
    detail = pl.concat_str("detail", pl.col("name").fill_null(""), text.fill_null(""))
    return named.with_columns(detail=detail).select("row", "reason", "detail")


def _shared(recipe: Recipe, train: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame, dict[str, SharePart], str | None]:
    """The training rows thinned and repeated to their shares, with `repeat` (i32, from 1), and those set aside for
    it; `train` comes in the order in which rows are taken."""
    settings = recipe.mixture
    counted = {"supervised_tokens": pl.col("supervised"), "tokens": pl.col("tokens"), "rows": pl.lit(1)}
    train = train.with_columns(
        amount=counted[settings.measure].cast(pl.Int64), nth=pl.int_range(pl.len()).over("source")
    )
    amounts = {source.name: train.filter(source=source.name)["amount"].to_numpy() for source in recipe.sources}
    asked = asked_shares(
        {name: int(amount.sum()) for name, amount in amounts.items()},
        {source.name: source.share for source in recipe.sources},
        {source.name: source.kind for source in recipe.sources},
        settings,
    )
    parts, limit = allot(amounts, asked, settings)
    rows = pl.col("source").replace_strict({name: part.rows for name, part in parts.items()})
    have = pl.col("source").replace_strict({name: len(amount) for name, amount in amounts.items()})
    # A row comes as often as all do, and once more where it is among the first of the last, partial epoch.
    times = rows // have + (pl.col("nth") < rows % have).cast(pl.Int64)
    train = train.with_columns(times=times).drop("amount", "nth")
    above = train.filter(times=0).select(
        "row",
        twin=pl.lit(None, pl.UInt32),
        reason=pl.lit(ABOVE_SHARE),
        detail=pl.format("the mixture is limited by {}", pl.lit(limit or "nothing")),
        shown=pl.lit(False),
    )
    taken = train.filter(pl.col("times") > 0).with_columns(repeat=pl.int_ranges(1, pl.col("times") + 1, dtype=pl.Int32))
    return taken.explode("repeat").drop("times"), above, parts, limit


def _suite_questions(recipe: Recipe) -> dict[str, pl.Series]:
    """The questions of the suites that are benchmark files, by where these are. What reasoning-gym makes is left out:
    its questions are one template, and another seed makes others."""
    return {
        suite.data: benchmark_prompts(suite.data, f"evaluation.suites.{suite.name}.data")
        for suite in recipe.evaluation.suites
        if suite.data and not suite.data.startswith("gym://")
    }


def _benchmark_item(item: int, benchmarks: Mapping[str, pl.Series]) -> tuple[str, str]:
    """Where the item of this number comes from, and its question."""
    for path, questions in benchmarks.items():
        if item < len(questions):
            return f"{Path(path.partition('#')[0]).name}, item {item}", questions[item]
        item -= len(questions)
    raise AssertionError("an item of no benchmark")


def _benchmark_digest(path: str) -> str:
    file = Path(path.partition("#")[0])
    if not file.is_file():
        raise BadInput("mixture.benchmarks", path, "is not a file", "Give the path of a benchmark's questions.")
    return file_digest(file)


def _ranked(recipe: Recipe, conversations: Sequence[Conversations]) -> dict[str, Conversations]:
    given = {one.source: one for one in conversations}
    for source in recipe.sources:
        if source.name not in given:
            raise BadInput(
                f"sources.{source.name}",
                sorted(given),
                "does not hold its conversations",
                "Fetch and validate every source of the recipe first.",
            )
        if not given[source.name].passed:
            raise Refused(f"sources.{source.name}: the data gate stopped it; nothing is mixed from it.")
        if not given[source.name].rows_out:
            raise BadInput(
                f"sources.{source.name}",
                f"{given[source.name].rows_in} rows",
                "has none left after the data gate, nothing to mix",
                "See its quarantine for the reasons, or remove the source and raise the other shares.",
            )
    return {source.name: given[source.name] for source in recipe.sources}


def _one_of(ranked: Mapping[str, Conversations], name: str) -> str:
    """What all sources agree on in their inputs, such as the tokenizer's digest."""
    found = {source: one.inputs.get(name) for source, one in ranked.items()}
    if len(set(found.values())) != 1 or None in found.values():
        raise BadInput("sources", found, f"were not all made with the same {name}", "Validate them with one recipe.")
    return str(next(iter(found.values())))


def _holds_out(recipe: Recipe, kept: pl.DataFrame) -> None:
    """A kind that a suite is made of has to have held-out conversations at all."""
    kinds = {suite.kind for suite in recipe.evaluation.suites if suite.kind}
    there = set(kept.filter(split="test")["kind"].unique())
    for kind in sorted(kinds - there):
        rows = kept.filter(kind=kind).height
        raise BadInput(
            "mixture.test",
            recipe.mixture.test,
            f"holds out none of the {rows} {kind} conversations, which an evaluation suite is made of",
            f"Raise mixture.test or give the {kind} sources more rows.",
        )


def _summary(rows: pl.DataFrame) -> Split:
    return Split(
        rows=rows.height,
        tokens=int(rows["tokens"].sum()),
        supervised_tokens=int(rows["supervised"].sum()),
        digest=digest(rows.sort("place")["row_id"].to_list()),
    )
