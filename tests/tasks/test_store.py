"""The store: what has no manifest does not exist, and the same inputs are never made twice."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from tasks.errors import BadInput, WorldFailed
from tasks.store import Manifest, RowManifest, Store, code_digest, digest, home


class Note(Manifest):
    kind = "note"

    words: int


class Rows(RowManifest):
    kind = "rows"


def write(text: str):
    def build(folder: Path) -> dict[str, int]:
        (folder / "part").mkdir()
        (folder / "part" / "note.txt").write_text(text)
        return {"words": len(text.split())}

    return build


def test_the_same_inputs_are_made_once(tmp_path: Path) -> None:
    store = Store(tmp_path)
    first, made = store.make(Note, {"text": "a b"}, write("a b"))
    again, made_again = store.make(Note, {"text": "a b"}, lambda _: pytest.fail("was made twice"))
    assert (made, made_again) == (True, False)
    assert first == again == store.find(Note, first.address)
    assert first.address == Store.address(Note, {"text": "a b"})
    assert (store.folder(first) / "part" / "note.txt").read_text() == "a b"
    assert list(first.files) == ["part/note.txt"]
    other, _ = store.make(Note, {"text": "c"}, write("c"))
    assert other.address != first.address
    assert store.all(Note) in ([first, other], [other, first])


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def fail(folder: Path) -> dict[str, int]:
        (folder / "half.txt").write_text("half")
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        store.make(Note, {}, fail)
    assert store.find(Note, Store.address(Note, {})) is None
    made, _ = store.make(Note, {}, write("whole"))
    assert list(made.files) == ["part/note.txt"]


def test_a_resumable_build_finds_what_the_last_attempt_left(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def stop_half_way(folder: Path) -> dict[str, int]:
        (folder / "checkpoint").write_text("7")
        raise RuntimeError("stopped")

    def go_on(folder: Path) -> dict[str, int]:
        return {"words": int((folder / "checkpoint").read_text())}

    with pytest.raises(RuntimeError):
        store.make(Note, {}, stop_half_way, resumable=True)
    made, _ = store.make(Note, {}, go_on, resumable=True)
    assert made.words == 7


def _make_and_count(root: str, log: str) -> None:
    def build(folder: Path) -> dict[str, int]:
        with open(log, "a") as file:
            file.write("made\n")
        return write("one two")(folder)

    Store(Path(root)).make(Note, {"text": "shared"}, build)


def test_two_processes_make_an_output_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_make_and_count, args=(str(tmp_path), str(tmp_path / "log"))) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    assert (tmp_path / "log").read_text() == "made\n"


def test_a_killed_build_is_made_again(tmp_path: Path) -> None:
    script = """
import os, signal, sys
from pathlib import Path
from tests_note import Note
from tasks.store import Store
def build(folder):
    (folder / "half.txt").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
Store(Path(sys.argv[1])).make(Note, {}, build)
"""
    (tmp_path / "tests_note.py").write_text(
        "from tasks.store import Manifest\nclass Note(Manifest):\n    kind = 'note'\n    words: int\n"
    )
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{tmp_path}"}
    ended = subprocess.run([sys.executable, "-c", script, str(tmp_path / "store")], env=environment, check=False)
    assert ended.returncode == -signal.SIGKILL
    store = Store(tmp_path / "store")
    assert store.all(Note) == []
    made, _ = store.make(Note, {}, write("whole again"))
    assert list(made.files) == ["part/note.txt"]


def test_rows_must_add_up(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(ValidationError, match="5 rows went in, but 3 came out and 1 were set aside"):
        store.make(Rows, {}, lambda _: {"rows_in": 5, "rows_out": 3, "set_aside": {"empty": 1}})
    assert store.all(Rows) == []


def test_a_remote_store_serves_another_machine(tmp_path: Path) -> None:
    remote = (tmp_path / "remote").as_uri()
    here, there = Store(tmp_path / "here", remote), Store(tmp_path / "there", remote)
    made, _ = here.make(Note, {"text": "far"}, write("far away"))
    found, made_there = there.make(Note, {"text": "far"}, lambda _: pytest.fail("was made twice"))
    assert (found, made_there) == (made, False)
    assert (there.folder(found) / "part" / "note.txt").read_text() == "far away"


def test_a_damaged_remote_output_is_refused(tmp_path: Path) -> None:
    remote = tmp_path / "remote"
    here, there = Store(tmp_path / "here", remote.as_uri()), Store(tmp_path / "there", remote.as_uri())
    made, _ = here.make(Note, {"text": "far"}, write("far away"))
    (remote / "note" / made.address / "part" / "note.txt").write_text("far awaz")
    with pytest.raises(WorldFailed, match="sha256"):
        there.find(Note, made.address)
    assert there.all(Note) == []


def test_a_full_disk_is_one_clear_error(tmp_path: Path) -> None:
    def fill(_folder: Path) -> dict[str, int]:
        raise OSError(28, "No space left on device")

    with pytest.raises(WorldFailed, match=r"No space left on device.*Free disk space"):
        Store(tmp_path).make(Note, {}, fill)


def test_an_unwritable_home_is_bad_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("NIGHTOWL_HOME", str(tmp_path / "file" / "home"))
    with pytest.raises(BadInput, match=r"NIGHTOWL_HOME.*cannot be written to"):
        home()


def test_digests_are_canonical() -> None:
    assert digest({"a": 1, "b": [1, 2]}) == digest(json.loads('{"b": [1, 2], "a": 1}'))
    assert digest({"a": 1}) != digest({"a": 2})
    assert code_digest("tasks/store.py") != code_digest("tasks/recipe/part.py")
    assert code_digest("tasks/mixture") != code_digest("tasks/mixture", libraries=("polars",))
