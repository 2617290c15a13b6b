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

import polars as pl

from tasks.conversations import Conversations
from tasks.errors import BadInput, Refused
from tasks.mixture import (
    SPLITS,
    Index,
    Split,
    TokenisedMixture,
    allot,
    draw_composition,
    excerpts,
    gather,
    leaks,
    overlaps,
    split_of,
    write_splits,
)
from tasks.quality import Bands, benchmark_questions, exact_duplicates, near_duplicates, word_hashes
from tasks.recipe import Recipe
from tasks.store import Store, code_digest, digest, file_digest

NEAR_DUPLICATE = "near-duplicate"
ABOVE_SHARE = "above share"


def mix(recipe: Recipe, conversations: Sequence[Conversations], store: Store) -> TokenisedMixture:
    """Splits of a recipe's gated sources, made unless the store has them.

    `conversations`: one for each source of the recipe, in any order; the recipe's order ranks them, and of
    twins the better-ranked source keeps its copy.

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
    manifest, _ = store.make(TokenisedMixture, inputs, lambda work: {**carried, **_build(recipe, folders, work)})
    return manifest


def mixture_inputs(recipe: Recipe, conversations: Sequence[Conversations]) -> dict[str, Any]:
    """What the address of a recipe's mixture is the digest of. Raises as `mix` does for what it is given."""
    ranked = _ranked(recipe, conversations)
    return {
        "code": code_digest(
            "tasks/mix.py",
            "tasks/mixture",
            *(f"tasks/quality/{module}.py" for module in ("contamination", "duplicates", "near", "words")),
            "tasks/conversations/identity.py",
            libraries=("polars", "pyarrow", "matplotlib", "numpy", "rensa"),
        ),
        "recipe": recipe.name,
        "mixture": recipe.mixture.model_dump(mode="json"),
        "sources": [
            {"name": name, "share": source.share, "conversations": one.address}
            for (name, one), source in zip(ranked.items(), recipe.sources, strict=True)
        ],
        "benchmarks": [_benchmark_digest(path) for path in recipe.mixture.benchmarks],
        "held_out_kinds": sorted({suite.kind for suite in recipe.evaluation.suites}),
    }


def _build(recipe: Recipe, folders: Mapping[str, Path], work: Path) -> dict[str, Any]:
    scratch = work / "words"
    scratch.mkdir()
    index = gather(folders, recipe.mixture.seed, scratch)
    repeated = _duplicates(recipe, index, folders)
    kept = index.rows.join(repeated, on="row", how="anti", maintain_order="left")
    kept = kept.with_columns(split_of(kept["prompt"], test=recipe.mixture.test, validation=recipe.mixture.validation))
    _holds_out(recipe, kept)
    given_away = _given_away(recipe, index, kept, folders)
    shutil.rmtree(scratch)

    train = kept.filter(split="train").join(given_away, on="row", how="anti").sort("take", "row_id")
    parts, limit = allot(
        {s.name: train.filter(source=s.name)["supervised"].to_numpy() for s in recipe.sources},
        {s.name: s.share for s in recipe.sources},
        recipe.mixture.rows,
    )
    nth = pl.int_range(pl.len()).over("source")
    train = train.with_columns(above=nth >= pl.col("source").replace_strict({n: p.rows for n, p in parts.items()}))
    above = train.filter("above").select(
        "row", reason=pl.lit(ABOVE_SHARE), detail=pl.format("the mixture is limited by {}", pl.lit(limit or "nothing"))
    )
    train = train.filter(~pl.col("above")).drop("above").sort("order", "row_id")
    # Held-out rows come in the order of their hash: the first n of them stay the first n as data grows.
    held_out = kept.filter(pl.col("split") != "train").sort("fixed_order", "row_id")
    chosen = pl.concat([train, held_out]).with_columns(place=pl.int_range(pl.len()).over("split"))

    if not (leaked := leaks(chosen)).is_empty():
        raise AssertionError(f"{leaked.height} training rows share a prompt with a held-out row: {leaked.row(0)}")
    write_splits(chosen.select("source", "at", "split", "place"), folders, work)
    aside = pl.concat([repeated, given_away, above])
    set_aside = aside.join(index.rows.select("row", "row_id", "source"), on="row").sort("row")
    set_aside.select("row_id", "source", "reason", "detail").write_parquet(
        work / "set_aside.parquet", compression="zstd", statistics=False
    )
    draw_composition(index.rows, chosen, set_aside, parts, work)
    return {
        "rows_in": index.rows.height,
        "rows_out": chosen.height,
        "set_aside": dict(aside.group_by("reason").len().sort("reason").iter_rows()),
        "splits": {name: _summary(chosen.filter(split=name)) for name in SPLITS},
        "shares": parts,
        "limited_by": limit,
    }


def _duplicates(recipe: Recipe, index: Index, folders: Mapping[str, Path]) -> pl.DataFrame:
    """Rows that repeat a better-ranked one, as (row, reason, detail)."""
    exact = exact_duplicates(index.rows, keep_other_answers=recipe.mixture.same_prompt == "all")
    found = [exact.select("row", "reason", detail=_named(index.rows, exact["twin"]))]
    if (threshold := recipe.mixture.near_duplicates) is not None:
        left = index.rows.select("row").join(exact, on="row", how="anti", maintain_order="left")["row"].to_numpy()
        keys = Bands(threshold).of(index.said)
        near = near_duplicates(index.said, keys, threshold, left)
        texts = excerpts(index.rows, near["twin"].unique().to_list(), folders)
        detail = pl.format(
            "{} alike: {}: {}",
            pl.col("jaccard").round(3),
            _named(index.rows, near["twin"]),
            pl.col("twin").replace_strict(texts, return_dtype=pl.String),
        )
        found.append(near.select("row", reason=pl.lit(NEAR_DUPLICATE), detail=detail))
    return pl.concat(found)


def _given_away(recipe: Recipe, index: Index, kept: pl.DataFrame, folders: Mapping[str, Path]) -> pl.DataFrame:
    """Training rows that hold a held-out or a benchmark question, as (row, reason, detail)."""
    benchmarks = {path: benchmark_questions(path) for path in recipe.mixture.benchmarks}
    held_out = kept.filter(pl.col("split") != "train")["row"]
    items = index.asked.take(held_out.to_numpy())
    for questions in benchmarks.values():
        items = items.then(word_hashes(questions))
    train = kept.filter(split="train").select("row")
    found = overlaps(index, train["row"], items, recipe.mixture)
    asking = held_out.gather(found["item"].filter(found["item"] < len(held_out)).unique())
    texts = excerpts(index.rows, asking.to_list(), folders)
    told = []
    for row, item, how, degree in found.iter_rows():
        if item < len(held_out):
            origin, place, text = "held-out", _named(index.rows, held_out[[item]])[0], texts[held_out[item]]
        else:
            origin = "benchmark"
            place, text = _benchmark_item(item - len(held_out), benchmarks)
        told.append((row, f"{how} a {origin} question", f"{degree:.0%}: {place}: {text[:160]}"))
    return pl.DataFrame(told, schema={"row": pl.UInt32, "reason": pl.String, "detail": pl.String}, orient="row")


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


def _named(index: pl.DataFrame, rows: pl.Series) -> pl.Series:
    return index[rows].select(pl.format("{}, source row {}, {}", "source", "source_row", "row_id")).to_series()


def _holds_out(recipe: Recipe, kept: pl.DataFrame) -> None:
    """A kind that a suite is made of has to have held-out conversations at all."""
    kinds = {suite.kind for suite in recipe.evaluation.suites}
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
