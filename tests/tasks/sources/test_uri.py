from __future__ import annotations

import pytest

from tasks.errors import BadInput
from tasks.sources import parse_uri


@pytest.mark.parametrize(
    ("text", "scheme", "path", "revision", "params"),
    [
        ("hf://org/name", "hf", "org/name", None, {}),
        ("hf://gpt2@main", "hf", "gpt2", "main", {}),
        ("hf://org/na.me@refs/pr/3?split=train", "hf", "org/na.me", "refs/pr/3", {"split": "train"}),
        ("modelscope://org/name@v1.0", "modelscope", "org/name", "v1.0", {}),
        ("file://a/b*.jsonl", "file", "a/b*.jsonl", None, {}),
        ("file:///a%3Fb/me@home.csv?header=false", "file", "/a?b/me@home.csv", None, {"header": "false"}),
        ("gym://chain_sum?size=5&max_terms=3", "gym", "chain_sum", None, {"size": "5", "max_terms": "3"}),
        ("sample://tools?size=700&seed=0", "sample", "tools", None, {"size": "700", "seed": "0"}),
    ],
)  # fmt: skip
def test_a_uri_is_taken_apart(text: str, scheme: str, path: str, revision: str | None, params: dict[str, str]) -> None:
    uri = parse_uri(text)
    assert (uri.scheme, uri.path, uri.revision, uri.params) == (scheme, path, revision, params)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not a source URI"),
        ("data.jsonl", "file://data.jsonl"),
        ("hff://org/name", "Did you mean 'hf'"),
        ("ftp://bucket/x", "It starts with one of"),
        ("hf://", "does not name a repository"),
        ("hf://datasets/org/name", "does not name a repository"),
        ("hf://org/../name", "does not name a repository"),
        ("hf://org/name@", "no usable revision"),
        ("hf://org/name@a..b", "no usable revision"),
        ("hf://org/name?splitt=train", "Did you mean 'split'"),
        ("hf://org/name?split=", "gives split no value"),
        ("hf://org/name?split=a&split=b", "gives a parameter twice"),
        ("hf://org/name?split", "malformed query"),
        ("file://", "names nothing"),
        ("file://a%00b", "NUL"),
        ("sample://tools?sizes=3", "Did you mean 'size'"),
    ],
)
def test_a_bad_uri_names_field_value_and_way_out(text: str, message: str) -> None:
    with pytest.raises(BadInput) as raised:
        parse_uri(text, field="sources.x.uri")
    said = str(raised.value)
    assert said.startswith(f"sources.x.uri: {text!r} ")
    assert message in said


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "x", "1e3", "99999999999999999999"])
def test_a_size_out_of_bounds_is_bad_input(value: str) -> None:
    with pytest.raises(BadInput, match=r"which is not a whole number from 1 to 10"):
        parse_uri(f"sample://tools?size={value}").whole("size", 5, least=1, most=10)


@pytest.mark.parametrize("value", ["-0.1", "0.6", "nan", "x"])
def test_a_fraction_out_of_bounds_is_bad_input(value: str) -> None:
    with pytest.raises(BadInput, match=r"which is not a fraction from 0 to 0.5"):
        parse_uri(f"sample://tools?planted={value}").fraction("planted", 0.1, most=0.5)
