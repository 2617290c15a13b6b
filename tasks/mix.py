"""Mix: gated conversations become splits that are what they say.

In order: duplicates within and across sources are set aside, prompts are split by their hash, each source is
thinned to its share of supervised tokens, and the splits are written in an order that depends on the seed
alone. Only an index (a few numbers and a prompt a row) is held in memory; the rows themselves are streamed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from tasks.conversations import Conversations, prompt_key
from tasks.errors import BadInput, Refused
from tasks.mixture import (
    SPLITS,
    Split,
    TokenisedMixture,
    allot,
    conversations_with_tokens,
    draw_composition,
    hash64,
    hash128,
    leaks,
    split_of,
    write_splits,
)
from tasks.quality import exact_duplicates, fingerprints
from tasks.recipe import Recipe
from tasks.store import Store, code_digest, digest

ABOVE_SHARE = "above share"


def mix(recipe: Recipe, conversations: Sequence[Conversations], store: Store) -> TokenisedMixture:
    """Splits of a recipe's gated sources, made unless the store has them.

    `conversations`: one for each source of the recipe, in any order; the recipe's order ranks them, and of
    twins the better-ranked source keeps its copy.

    Raises BadInput when a source has nothing left or a share cannot be reached, Refused for a source that did
    not pass the data gate, WorldFailed when the store's files are damaged or cannot be written.
    """
    ranked = _ranked(recipe, conversations)
    inputs = {
        "code": code_digest(
            "tasks/mix.py",
            "tasks/mixture",
            "tasks/quality/duplicates.py",
            "tasks/conversations",
            libraries=("polars", "pyarrow", "matplotlib"),
        ),
        "recipe": recipe.name,
        "mixture": recipe.mixture.model_dump(mode="json"),
        "sources": [
            {"name": name, "share": source.share, "conversations": one.address}
            for (name, one), source in zip(ranked.items(), recipe.sources, strict=True)
        ],
        "held_out_kinds": sorted({suite.kind for suite in recipe.evaluation.suites}),
    }
    folders = {name: store.folder(one) for name, one in ranked.items()}
    carried = {
        "recipe": recipe.name,
        "chat_template": digest(recipe.base.chat_template),
        "tokenizer": _one_of(ranked, "tokenizer"),
    }
    manifest, _ = store.make(TokenisedMixture, inputs, lambda work: {**carried, **_build(recipe, folders, work)})
    return manifest


def _build(recipe: Recipe, folders: Mapping[str, Path], work: Path) -> dict[str, Any]:
    index = _index(folders, recipe.mixture.seed)
    twins = exact_duplicates(index, keep_other_answers=recipe.mixture.same_prompt == "all")
    aside = twins.select("row", "reason", detail=_named(index, twins["twin"]))
    kept = index.join(aside, on="row", how="anti", maintain_order="left")
    kept = kept.with_columns(split_of(kept["prompt"], test=recipe.mixture.test, validation=recipe.mixture.validation))
    _holds_out(recipe, kept)

    train = kept.filter(split="train").sort("choice", "row_id")
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
    aside = pl.concat([aside, above])
    train = train.filter(~pl.col("above")).drop("above").sort("order", "row_id")
    # Held-out rows come in the order of their hash: the first n of them stay the first n as data grows.
    held_out = kept.filter(pl.col("split") != "train").sort("fixed_order", "row_id")
    chosen = pl.concat([train, held_out]).with_columns(place=pl.int_range(pl.len()).over("split"))

    if not (leaked := leaks(chosen)).is_empty():
        raise AssertionError(f"{leaked.height} training rows share a prompt with a held-out row: {leaked.row(0)}")
    write_splits(chosen.select("source", "at", "split", "place"), folders, work)
    set_aside = aside.join(index.select("row", "row_id", "source"), on="row").sort("row")
    set_aside.select("row_id", "source", "reason", "detail").write_parquet(
        work / "set_aside.parquet", compression="zstd", statistics=False
    )
    counts = dict(aside.group_by("reason").len().sort("reason").iter_rows())
    draw_composition(index, chosen, set_aside, parts, work)
    return {
        "rows_in": index.height,
        "rows_out": chosen.height,
        "set_aside": counts,
        "splits": {name: _summary(chosen.filter(split=name)) for name in SPLITS},
        "shares": parts,
        "limited_by": limit,
    }


def _index(folders: Mapping[str, Path], seed: int) -> pl.DataFrame:
    """One row a conversation, best-ranked first: where it is, what it is compared by, and what it weighs."""
    parts = []
    for source, folder in folders.items():
        for batch in conversations_with_tokens(folder):
            light = batch.select(
                "at",
                "row_id",
                "source_row",
                "kind",
                source=pl.lit(source),
                tokens=pl.col("input_ids").list.len().cast(pl.Int64),
                supervised=pl.col("loss_mask").list.sum().cast(pl.Int64),
            )
            # The prompt's hash stands for it from here on: a million prompts in full would fill the memory.
            prompts = hash128(prompt_key(batch), "prompt")
            parts.append(pl.concat([light, fingerprints(batch, prompts)], how="horizontal"))
    index = pl.concat(parts).with_row_index("row")
    ids = index["row_id"]
    return index.with_columns(
        choice=hash64(ids, f"take {seed}"),
        order=hash64(ids, f"order{seed}"),
        fixed_order=hash64(ids, "held out"),
    )


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
    found = {source: str(one.inputs.get(name)) for source, one in ranked.items()}
    if len(set(found.values())) != 1:
        raise BadInput("sources", found, f"were not all made with the same {name}", "Validate them with one recipe.")
    return next(iter(found.values()))


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
