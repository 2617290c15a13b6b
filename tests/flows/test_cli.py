"""The command: answers at once, says one clear thing when the input is bad, and exits as documented."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tasks.recipe import PRESETS
from tests.infra.programs import refusal

ROOT = Path(__file__).resolve().parents[2]
HEAVY_TEXT = "torch transformers great_expectations mlflow evalscope unsloth trl peft datasets matplotlib scipy"
HEAVY = {*HEAVY_TEXT.split(), "polars", "prefect", "pyarrow", "pandas", "huggingface_hub", "modelscope"}


def nightowl(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "flows.cli", *arguments]
    full = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200", **environment}
    return subprocess.run(command, env=full, capture_output=True, text=True, check=False)


def test_help_imports_nothing_heavy() -> None:
    script = "import sys; from flows import cli\ntry: cli.app(['--help'])\nexcept SystemExit: print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "Usage" in done.stdout
    assert HEAVY & set(done.stdout.split()) == set()


def test_every_command_in_the_readme_exists() -> None:
    told = set(re.findall(r"nightowl ([a-z]+)", (ROOT / "README.md").read_text()))
    helped = nightowl("--help").stdout
    assert len(told) > 8
    assert [command for command in told if f" {command} " not in helped] == []


def test_the_chinese_readme_has_the_same_commands() -> None:
    def commands(readme: str) -> list[str]:
        text = (ROOT / readme).read_text(encoding="utf-8")
        return re.findall(
            r"^(?:    |\| `)((?:[A-Z_]+=\S+ )*(?:nightowl|make|curl|docker|kubectl|\(umask) [^`\n]+)",
            text,
            re.MULTILINE,
        )

    assert len(commands("README.md")) > 15
    assert commands("README.zh-CN.md") == commands("README.md")

    def parts(readme: str) -> tuple[int, list[str]]:
        text = (ROOT / readme).read_text(encoding="utf-8")
        return len(re.findall("^## ", text, re.MULTILINE)), sorted(set(re.findall(r"\]\(([^)]+)\)", text)))

    (sections, links), (theirs, their_links) = parts("README.md"), parts("README.zh-CN.md")
    assert theirs == sections
    assert [link for link in their_links if link not in links] == ["README.md"]
    assert [link for link in links if link not in their_links] == ["README.zh-CN.md"]
    assert [link for link in links if "://" not in link and not (ROOT / link).exists()] == []


@pytest.mark.parametrize("readme", ["README.md", "README.zh-CN.md"])
def test_every_command_line_in_the_readme_is_taken(readme: str) -> None:
    """By the command's own parser; what they do is tested where it is done."""
    text = (ROOT / readme).read_text(encoding="utf-8")
    lines = re.findall(
        r"^(?:    |\| `)(?:[A-Z_]+=\S+ )*(nightowl [^`\n]+)|`(nightowl [a-z]+ [^`\n]+)`", text, re.MULTILINE
    )
    told = {(first or second).partition(" #")[0].strip() for first, second in lines}
    assert len(told) > 15
    placeholders = {
        "VERSION": "1",
        "OUT": "out",
        "REASON": "because",
        "URI": "hf://org/name",
        "ROW_ID": "0" * 32,
        "'...'": "because",
    }
    for line in told:
        for name, value in placeholders.items():
            line = line.replace(name, value)
        assert refusal(shlex.split(line)) == "", line
    targets = set(re.findall(r"(?:^    |`)make ([a-z]+)", text, re.MULTILINE))
    assert {"demo", "test"} <= targets
    makefile = (ROOT / "Makefile").read_text()
    assert [target for target in targets if f"\n{target}:" not in makefile] == []


def test_make_help_lists_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text()
    listed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for target in ("setup", "demo", "test", "lint", "up", "bench", "clean"):
        assert f"\n{target}:" in makefile
        assert f"make {target} " in listed


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["run", "nowhere.yaml"], 2, r"recipe: 'nowhere\.yaml' is neither a file nor a preset\. Presets: .*demo"),
        (["run", "demo", "--set", "training.rnak=8"], 2, r"training\.rnak.*Did you mean 'rank'"),
        (
            ["run", "demo", "--set", "sources.chat.share=1.5"],
            2,
            r"sources\.chat\.share: 1\.5 .*less than or equal to 1",
        ),
        (["mix", "demo", "--set", "sources.chat.uri=ftp://x"], 2, r"sources\.chat\.uri: 'ftp://x'"),
        (["check", "missing.jsonl"], 2, r"missing\.jsonl"),
        (["champion", "demo"], 1, r"nightowl-demo has no champion yet"),
        (["report", "demo"], 1, r"demo has had no night yet"),
        (["reproduce", "demo", "champion"], 2, r"'champion' is no version of nightowl-demo"),
        (["frobnicate"], 2, r"No such command"),
    ],
)
def test_errors(arguments: list[str], code: int, says: str) -> None:
    done = nightowl(*arguments)
    assert done.returncode == code, done.stderr
    assert re.search(says, done.stderr)
    assert "Traceback" not in done.stderr


def test_errors_in_json() -> None:
    done = nightowl("run", "nowhere.yaml", "--json")
    told = json.loads(done.stdout)
    assert told["exit_code"] == done.returncode == 2
    assert "nowhere.yaml" in told["error"]


def test_an_unwritable_home(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = nightowl("run", "demo", NIGHTOWL_HOME=str(tmp_path / "file" / "home"))
    assert done.returncode == 2
    assert "NIGHTOWL_HOME" in done.stderr


def test_too_little_memory(nightowl_home: Path) -> None:
    script = f"""
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (700 << 20, 700 << 20))
sys.argv = ["nightowl", "run", {str(PRESETS / "demo.yaml")!r}]
from flows.cli import main
main()
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 3, done.stderr
    assert re.search(r"memory: .* a night needs", done.stderr)
    assert not list(nightowl_home.glob("store/*"))


def test_a_source_that_yields_nothing(tmp_path: Path) -> None:
    given = yaml.safe_load((PRESETS / "demo.yaml").read_text())
    given["base"]["chat_template_file"] = str(PRESETS / given["base"]["chat_template_file"])
    given["sources"][0]["uri"] = f"file://{tmp_path}/empty.jsonl"
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(given))
    done = nightowl("mix", str(tmp_path / "recipe.yaml"))
    assert done.returncode in (1, 2), done.stderr
    assert re.search(r"sources\.tools|empty\.jsonl", done.stderr)
    assert "Traceback" not in done.stderr
