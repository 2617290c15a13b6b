"""Gated sources made in memory, a tiny base model, and real servers: PostgreSQL and one that speaks S3."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from llama import byte_tokenizer, write_llama

from tasks.conversations import CONVERSATION, Conversations, write_conversations
from tasks.store import Store

Row = dict[str, Any]


def conversation(
    prompt: str, answer: str, kind: str = "chat", tokens: int | None = None, thinking: str | None = None
) -> Row:
    """A conversation of one question and one answer; `tokens`: supervised tokens, by default words of the answer."""
    messages = [
        {"role": "user", "content": prompt, "thinking": None, "tool_calls": None, "tool_call_id": None},
        {"role": "assistant", "content": answer, "thinking": thinking, "tool_calls": None, "tool_call_id": None},
    ]
    content = json.dumps([kind, messages], sort_keys=True)
    return {
        "row_id": hashlib.sha256(content.encode()).hexdigest()[:32],
        "kind": kind,
        "messages": messages,
        "tools": None,
        "prompt_tokens": len(prompt.split()) + 4,
        "answer_tokens": tokens if tokens is not None else len(answer.split()) + 1,
    }


def varied(source: str, rows: int, kind: str = "chat", words: tuple[int, int] = (3, 60)) -> list[Row]:
    """Distinct conversations with answers of various lengths; the first n of them are the same for any `rows` >= n."""
    made = []
    for number in range(rows):
        draw = random.Random(f"{source} {number}")
        answer = " ".join(draw.choice(WORDS) for _ in range(draw.randint(*words)))
        made.append(conversation(f"{source} question {number}: {draw.choice(WORDS)}?", f"{number} {answer}", kind))
    return made


WORDS = [a + b for a in ("ka", "lo", "mi", "ne", "ru", "sa", "to") for b in ("ban", "der", "fin", "gol", "hem", "jas")]


@pytest.fixture(scope="session", name="conversation")
def conversation_of() -> Callable[..., Row]:
    return conversation


@pytest.fixture(scope="session", name="varied")
def varied_rows() -> Callable[..., list[Row]]:
    return varied


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def gated(store: Store) -> Callable[..., Conversations]:
    """Puts rows into the store as a source that has passed the data gate."""

    def put(source: str, rows: Sequence[Row], *, passed: bool = True, **inputs: Any) -> Conversations:
        kind = rows[0]["kind"] if rows else "chat"
        digest = hashlib.sha256("".join(row["row_id"] for row in rows).encode()).hexdigest()
        columns = ("row_id", "kind", "messages", "tools")
        given = [
            {"source": source, "revision": "r1", "source_row": n, **{name: row[name] for name in columns}}
            for n, row in enumerate(rows)
        ]
        frame = pl.DataFrame(given, schema=CONVERSATION)
        lengths = [(row["prompt_tokens"], row["answer_tokens"]) for row in rows]
        frame = frame.with_columns(
            input_ids=pl.Series([list(range(p + a)) for p, a in lengths], dtype=pl.List(pl.Int32)),
            loss_mask=pl.Series([[False] * p + [True] * a for p, a in lengths], dtype=pl.List(pl.Boolean)),
        )

        def build(work: Path) -> dict[str, Any]:
            write_conversations(work, [frame])
            return {
                "source": source,
                "snapshot": "0" * 64,
                "row_kind": kind,
                "format": "native",
                "passed": passed,
                "findings": (),
                "answers": 0,
                "trained_answers": 0,
                "tokens": sum(p + a for p, a in lengths),
                "supervised_tokens": sum(a for _, a in lengths),
                "rows_in": len(rows),
                "rows_out": len(rows),
                "set_aside": {},
            }

        manifest, _ = store.make(
            Conversations, {"source": source, "rows": digest, "tokenizer": "t" * 64, **inputs}, build
        )
        return manifest

    return put


@pytest.fixture(scope="session")
def tiny_base() -> Callable[[Path], None]:
    """Writes a random two-layer Llama. Its pad token is its end-of-turn token."""
    tokenizer = byte_tokenizer(bos_token="<|im_start|>")
    # The range is large enough for the head to tell tokens apart.
    how = {"max_position_embeddings": 256, "tie_word_embeddings": True, "initializer_range": 0.3}
    return lambda folder: write_llama(folder, tokenizer, **how)


DEBIAN = Path("/usr/lib/postgresql")


class Postgres:
    """A server on the loopback, run by a user that may run one, with password authentication over TCP."""

    def __init__(self, binaries: Path, folder: Path, run_as: list[str]) -> None:
        self.binaries, self.folder, self.run_as = binaries, folder, run_as
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.databases = 0

    def command(self, name: str, *arguments: str) -> str:
        # The server keeps an inherited pipe open for as long as it runs, so output goes to a file.
        with tempfile.TemporaryFile("w+") as output:
            done = subprocess.run(
                [*self.run_as, str(self.binaries / name), *arguments],
                stdout=output,
                stderr=output,
                cwd=self.folder,
                env={"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "HOME": str(self.folder)},
            )
            output.seek(0)
            said = output.read()
        assert done.returncode == 0, said
        return said

    def start(self) -> None:
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off"
        data, log = self.folder / "data", self.folder / "log"
        self.command("pg_ctl", "-D", str(data), "-l", str(log), "-w", "-o", options, "start")

    def stop(self) -> None:
        self.command("pg_ctl", "-D", str(self.folder / "data"), "-w", "-m", "immediate", "stop")

    def connect(self, database: str = "postgres") -> Any:
        import psycopg

        return psycopg.connect(
            host="127.0.0.1", port=self.port, user="owner", password="owner secret", dbname=database, autocommit=True
        )

    def new_database(self) -> str:
        """SQLAlchemy's address of an empty database, for its owner."""
        self.databases += 1
        name = f"test_{self.databases}"
        with self.connect() as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return f"postgresql+psycopg://owner:owner%20secret@127.0.0.1:{self.port}/{name}"

    def uri(self, database: str, user: str = "reader") -> str:
        return f"postgresql://{user}@127.0.0.1:{self.port}/{database}"


def _binaries() -> Path | None:
    found = shutil.which("initdb")
    places = [Path(found).parent] if found else []
    places += sorted((place / "bin" for place in DEBIAN.glob("*")), key=lambda p: int(p.parent.name), reverse=True)
    return next((place for place in places if (place / "initdb").exists()), None)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A running server with the superuser `owner` and the user `reader`, who may read what owner grants."""
    binaries = _binaries()
    if binaries is None:
        pytest.skip("PostgreSQL is not here: no initdb on PATH or in /usr/lib/postgresql")
    run_as: list[str] = []
    folder = Path(tempfile.mkdtemp(prefix="nightowl-postgres-"))
    try:
        if os.geteuid() == 0:
            import pwd

            user = next((u for u in ("postgres", "nobody") if u in {entry.pw_name for entry in pwd.getpwall()}), None)
            runuser = shutil.which("runuser")
            if user is None or runuser is None:
                pytest.skip("PostgreSQL does not run as root, and there is no user postgres or nobody, or no runuser")
            run_as = [runuser, "-u", user, "--"]
            shutil.chown(folder, user)
        server = Postgres(binaries, folder, run_as)
        (folder / "password").write_text("owner secret")
        (folder / "password").chmod(0o644)
        server.command(
            "initdb", "-D", str(folder / "data"), "-U", "owner", "--pwfile", str(folder / "password"),
            "-A", "scram-sha-256", "-E", "UTF8", "--locale", "C.UTF-8", "-N",
        )  # fmt: skip
        server.start()
        try:
            with server.connect() as connection:
                connection.execute("CREATE ROLE reader LOGIN PASSWORD 'reader secret'")
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder)
