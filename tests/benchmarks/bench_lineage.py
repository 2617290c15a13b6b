"""What forward queries cost when a registry has a thousand nights. Not run by pytest.

    python tests/benchmarks/bench_lineage.py [NIGHTS] [ROWS]

Generates NIGHTS (default 1,000) nights in a temporary home: a data run, a training run and a version each, with a
source that moved every night and one that never did, and a mixture of ROWS (default 500) rows. Then asks for a source
that one night contains, for the one that all contain, and for a row, before and after its index is there, and lists
all nights and candidates.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import sys
import tempfile
import time
from pathlib import Path

import polars as pl

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tasks.mixture import SPLITS, Split, TokenisedMixture
from tasks.recipe import load
from tasks.registry import Holders, candidates, client, containing_row, containing_source, ensure_model
from tasks.registry import nights as all_nights
from tasks.store import Store

MODEL = "nightowl-bench"


def row_id(night: int, row: int) -> str:
    return hashlib.sha256(f"{night} {row}".encode()).hexdigest()[:32]


def make_mixture(store: Store, night: int, rows: int) -> TokenisedMixture:
    """A mixture with the row ids of one night: all that is looked at."""

    def build(work: Path) -> dict[str, object]:
        ids = pl.DataFrame({"row_id": [row_id(night, row) for row in range(rows)]})
        bounds = {"train": (0, rows * 8 // 10), "validation": (rows * 8 // 10, rows * 9 // 10)}
        splits = {}
        for name in SPLITS:
            first, last = bounds.get(name, (rows * 9 // 10, rows))
            ids[first:last].write_parquet(work / f"{name}.parquet", statistics=False)
            splits[name] = Split(rows=last - first, tokens=0, supervised_tokens=0, digest="")
        same = {"rows_in": rows, "rows_out": rows, "set_aside": {}, "shares": {}, "chat_template": "", "tokenizer": ""}
        return {**same, "recipe": "bench", "splits": splits}

    return store.make(TokenisedMixture, {"night": night}, build)[0]


def make_nights(database: Path, mixtures: list[str], journal: str) -> None:
    """Copies of one run and one version with tags of their own, straight into the database: the API takes hours."""
    with sqlite3.connect(database) as connection:
        for night, mixture in enumerate(mixtures, 1):
            at = int(time.time() * 1000) - (len(mixtures) - night) * 86_400_000
            sources = f"moves hf://org/log@{night:040x}\nstays sample://tools@{'5' * 40}"
            shared = {"nightowl.sources": sources, "nightowl.mixture": mixture}
            shared |= {f"nightowl.filler.{i}": "x" * 100 for i in range(20)}
            stages = {"data": {}, "train": {"nightowl.adapter": f"adapter-{night}"}, "night": {}}
            for stage, more in stages.items():
                run = copy(
                    connection, "runs", {"run_uuid": journal}, {"run_uuid": f"{stage}{night:028d}", "start_time": at}
                )
                kind = {"nightowl.kind": "night" if stage == "night" else "stage"}
                for key, value in {**shared, **more, **kind}.items():
                    copy(
                        connection,
                        "tags",
                        {"run_uuid": journal, "key": "nightowl.kind"},
                        {"run_uuid": run["run_uuid"], "key": key, "value": value},
                    )
                if stage == "night":  # as many settings as the demo's
                    rows = [(f"setting.{n}", "a value", run["run_uuid"]) for n in range(160)]
                    connection.executemany("INSERT INTO params (key, value, run_uuid) VALUES (?, ?, ?)", rows)
            if night > 1:
                copy(connection, "model_versions", {"version": 1}, {"version": night, "creation_time": at})
            tags = {**shared, "nightowl.adapter": f"adapter-{night}", "nightowl.base": "b@1"}
            tags |= {"nightowl.verdict": "keep", "nightowl.reasons": "[]", "nightowl.scores": "{}"}
            for key, value in tags.items():
                row = {"name": MODEL, "version": night, "key": key, "value": value}
                copy(connection, "model_version_tags", {"key": "seed"}, row)
        connection.execute("DELETE FROM model_version_tags WHERE key = 'seed'")
    connection.close()


def copy(connection: sqlite3.Connection, table: str, of: dict[str, object], changed: dict[str, object]) -> dict:
    """Insert a copy of the row with these values, with others in it."""
    connection.row_factory = sqlite3.Row
    where = " AND ".join(f"{key} = ?" for key in of)
    row = dict(connection.execute(f"SELECT * FROM {table} WHERE {where}", list(of.values())).fetchone()) | changed
    names = ", ".join(row)
    connection.execute(f"INSERT INTO {table} ({names}) VALUES ({', '.join('?' * len(row))})", list(row.values()))
    return row


def timed(name: str, ask, times: int = 3) -> None:
    """Print the best time of a few, and what was found."""
    best = float("inf")
    for _ in range(times):
        started = time.perf_counter()
        found = ask()
        best = min(best, time.perf_counter() - started)
    if isinstance(found, Holders):
        counts = f"{len(found.mixtures)} mixtures, {len(found.adapters)} adapters, {len(found.versions)} versions"
    else:
        counts = f"{len(found)} found"
    print(f"{name:34} {best:6.2f} s   {counts}", flush=True)


def main() -> None:
    nights, rows = (int(given) for given in [*sys.argv[1:], *["1000", "500"][len(sys.argv) - 1 :]])
    with tempfile.TemporaryDirectory() as folder:
        os.environ["NIGHTOWL_HOME"] = folder
        os.environ.pop("MLFLOW_TRACKING_URI", None)
        mlflow, store = client(), Store.open()
        ensure_model(mlflow, MODEL, "bench")
        journal = mlflow.get_registered_model(MODEL).tags["nightowl.journal"]
        mlflow.create_model_version(MODEL, "file:///nowhere", journal, tags={"seed": ""})
        mixtures = [make_mixture(store, night, rows).address for night in range(1, nights + 1)]
        make_nights(Path(folder) / "mlflow" / "mlflow.db", mixtures, journal)
        print(f"{nights} nights, mixtures of {rows} rows")
        recipe = load("demo", [f"registry.model={MODEL}"])[0]
        timed("the first query of a home", lambda: containing_source("hf://org/nothing"), times=1)
        timed("a commit that one night has", lambda: containing_source(f"hf://org/log@{nights // 2:040x}"))
        timed("the repository, all its commits", lambda: containing_source("hf://org/log"))
        timed("a source that never moved", lambda: containing_source("stays"))
        timed("a row, its index not there yet", lambda: containing_row(row_id(7, 3), store), times=1)
        timed("a row", lambda: containing_row(row_id(nights // 2, 3), store))
        timed("every night", lambda: all_nights("bench"))
        timed("every candidate", lambda: candidates(recipe))


if __name__ == "__main__":
    main()
