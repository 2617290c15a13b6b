"""Where a person looks at MLflow."""

from __future__ import annotations

import pytest

from tasks.registry import site


@pytest.mark.parametrize(
    ("tracking", "shown", "expected"),
    [
        (None, None, "http://127.0.0.1:5000"),
        ("http://mlflow:5000/", None, "http://mlflow:5000"),
        ("http://mlflow:5000", "https://mlflow.example.com", "https://mlflow.example.com"),
        (None, "http://127.0.0.1:5001", "http://127.0.0.1:5001"),
    ],
)
def test_links_lead_where_a_browser_can_go(
    tracking: str | None, shown: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("MLFLOW_TRACKING_URI", tracking), ("NIGHTOWL_MLFLOW_UI", shown)):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    assert site() == expected
