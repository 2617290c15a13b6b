from __future__ import annotations

import os
from pathlib import Path

import pytest

from tasks.errors import BadInput, WorldFailed
from tasks.fetch import base_inputs, fetch, fetch_base, source_inputs, verify
from tasks.recipe import Base, Source
from tasks.sources import BaseSnapshot, Snapshot
from tasks.store import Store

ROW = b'{"prompt": "a", "completion": "b"}\n'


def source(uri: str) -> Source:
    return Source(name="own", uri=uri, kind="chat", share=1)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.jsonl"
    path.write_bytes(ROW)
    return path


def test_a_file_is_fetched_once_until_its_content_changes(store: Store, data: Path) -> None:
    address = Store.address(Snapshot, source_inputs(source(f"file://{data}"), store))
    assert store.find(Snapshot, address) is None
    first = fetch(source(f"file://{data}"), store)
    assert (first.rows, first.address) == (1, address)
    os.utime(data, (1, 1))
    assert fetch(source(f"file://{data}"), store) == first
    with open(data, "ab") as file:
        file.write(ROW)
    second = fetch(source(f"file://{data}"), store)
    assert (second.rows, second.revision != first.revision) == (2, True)
    # What grew is not what was fetched the night before.
    assert (store.folder(first) / "data" / "data.jsonl").read_bytes() == ROW
    assert verify(store, first) == []


def test_a_damaged_snapshot_is_fetched_again(store: Store, data: Path) -> None:
    snapshot = fetch(source(f"file://{data}"), store)
    copy = store.folder(snapshot) / "data" / "data.jsonl"
    for damage in (lambda: copy.write_bytes(ROW.replace(b"a", b"z")), copy.unlink):
        damage()
        assert verify(store, snapshot) == ["data/data.jsonl"]
        assert fetch(source(f"file://{data}"), store).files == snapshot.files
        assert copy.read_bytes() == ROW


def test_a_file_that_changes_between_pin_and_copy_is_not_taken(
    store: Store, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tasks.sources import files

    copy = files.shutil.copyfile
    monkeypatch.setattr(files.shutil, "copyfile", lambda a, b: (copy(a, b), Path(b).write_bytes(ROW + ROW)))
    with pytest.raises(WorldFailed, match="changed while it was copied"):
        fetch(source(f"file://{data}"), store)
    assert store.all(Snapshot) == []


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("file://absent.jsonl", r"sources\.own\.uri: 'file://absent.jsonl' does not exist"),
        ("file://*.jsonl", r"matches no file"),
        ("file://.", r"folder without data files"),
        ("file://~nobody-of-that-name/x.jsonl", r"cannot be resolved"),
        ("file://x.jsonl?header=maybe", r"header=maybe"),
    ],
)
def test_a_file_that_is_not_there_is_one_clear_error(store: Store, uri: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        fetch(source(uri), store)


def test_a_folder_with_safetensors_is_a_base_model_and_one_with_a_pickle_is_not(store: Store, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for name in ("config.json", "tokenizer_config.json", "tokenizer.json", "pytorch_model.bin"):
        (model / name).write_bytes(b"{}")
    with pytest.raises(BadInput, match=r"base\.uri: .*pickled weights only \(pytorch_model\.bin\)"):
        fetch_base(Base(uri=f"file://{model}"), store)
    (model / "model.safetensors").write_bytes(b"weights")
    base = fetch_base(Base(uri=f"file://{model}"), store)
    assert set(base.files) == {"config.json", "tokenizer_config.json", "tokenizer.json", "model.safetensors"}
    assert store.all(BaseSnapshot) == [base]
    assert base.address == Store.address(BaseSnapshot, base_inputs(Base(uri=f"file://{model}")))
    (model / "tokenizer_config.json").unlink()
    with pytest.raises(BadInput, match=r"holds no tokenizer_config\.json"):
        fetch_base(Base(uri=f"file://{model}"), store)


@pytest.mark.parametrize("uri", ["gym://chain_sum", "sample://tools"])
def test_a_data_source_is_no_base_model(store: Store, uri: str) -> None:
    with pytest.raises(BadInput, match=r"is no (source of a model|sample base model)"):
        fetch_base(Base(uri=uri), store)
