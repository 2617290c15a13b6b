"""The recipe refuses what it cannot mean, and says where every value came from."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from tasks import recipe
from tasks.errors import BadInput


@pytest.fixture
def demo(tmp_path: Path) -> Path:
    given = yaml.safe_load((recipe.PRESETS / "demo.yaml").read_text())
    given["base"]["chat_template_file"] = "template.jinja"
    for source, share in zip(given["sources"], (0.55, 0.3, 0.15), strict=True):
        source["share"] = share
    (tmp_path / "template.jinja").write_text("{{ messages }}")
    (tmp_path / "demo.yaml").write_text(yaml.safe_dump(given))
    return tmp_path / "demo.yaml"


def test_every_preset_is_a_recipe() -> None:
    presets = sorted(recipe.PRESETS.glob("*.yaml"))
    assert presets
    for preset in presets:
        loaded, _ = recipe.load(preset)
        assert loaded.name == preset.stem


@pytest.mark.parametrize("preset", sorted(recipe.PRESETS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_preset_opens_with_what_it_does_and_how_to_use_it(preset: Path) -> None:
    head = re.match(r"(#.*\n)+", preset.read_text(encoding="utf-8"))
    assert head
    for word in ("What it does", "What it needs", "Run", "Override", "Schedule"):
        assert f"\n# {word:14} " in head[0]
    for name, *settings in re.findall(r"nightowl (?:run|deploy) ([\w./-]+)((?: --set \S+)*)", head[0]):
        changes = [] if not settings[0] else settings[0].removeprefix(" --set ").split(" --set ")
        loaded, _ = recipe.load(Path(name).stem, changes)
        assert loaded.name == preset.stem
        assert (loaded.schedule is not None) >= ("schedule.timezone" in settings[0])
    assert recipe.load(preset)[0].evaluation.suites[0].role == "target"


def test_every_field_is_described() -> None:
    def parts(part: type[recipe.Part]) -> list[tuple[str, str | None]]:
        return [(f"{part.__name__}.{name}", field.description) for name, field in part.model_fields.items()]

    described = [entry for part in recipe.Part.__subclasses__() for entry in parts(part)]
    assert len(described) > 40
    assert [name for name, text in described if not text] == []


def test_origins(demo: Path) -> None:
    loaded, settings = recipe.load(demo, ["training.seed=1", "sources.tools.share=0.5", "sources.chat.share=0.2"])
    origin = {setting.path: setting.origin for setting in settings}
    assert loaded.training.seed == 1
    assert origin["training.seed"] == origin["sources.tools.share"] == "command line"
    assert origin["training.rank"] == origin["sources.arithmetic.share"] == "recipe"
    assert origin["training.dropout"] == "default"
    assert loaded.base.chat_template == "{{ messages }}"


def test_a_number_in_scientific_notation_is_a_number(demo: Path) -> None:
    assert recipe.load(demo, ["training.learning_rate=2e-4"])[0].training.learning_rate == 2e-4


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("training.learnin_rate=1", r"training\.learnin_rate.*Did you mean 'learning_rate'"),
        ("sources.chat.shar=1", r"sources\.chat\.shar: .*Did you mean 'share'"),
        ("sources.tools.share=1.4", r"sources\.tools\.share: 1\.4 .*less than or equal to 1"),
        ("sources.tools.share=0.9", r"shares add up to 1\.35, not 1 \(tools 0\.9, arithmetic 0\.3, chat 0\.15\)"),
        ("sources.poems.share=0.1", r"'poems' is no entry.*tools, arithmetic, chat"),
        ("training.batch_size=many", r"training\.batch_size: 'many'.*valid integer"),
        ("training.micro_batch_size=3", r"micro_batch_size 3 does not divide batch_size 8"),
        ("mixture.test=0.9", r"mixture\.test: 0\.9.*less than 0\.5"),
        ("evaluation.suites=[]", r"no suite has the role 'target'"),
        ("evaluation.suites.tool_call.kind=poem", r"evaluation\.suites\.tool_call\.kind: 'poem'"),
        ("sources=[]", r"sources is empty"),
        ("name=Demo!", r"name: 'Demo!'"),
        ("training.seed", r"--set: 'training\.seed' is not of the form path=value"),
        ("name.x.y=1", r"--set name\.x\.y"),
        ("base=null", r"base: None"),
    ],
)
def test_bad_values_name_the_field_and_the_way_out(demo: Path, override: str, expected: str) -> None:
    with pytest.raises(BadInput, match=expected):
        recipe.load(demo, [override])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("- a list", "no mapping of recipe fields"),
        ("", "no mapping of recipe fields"),
        ("name: [", r"recipe\.yaml:1"),
        ("name: demo", "base: None is missing"),
        ("name: demo\nbase: {uri: 'sample://x', chat_template_file: gone.jinja}", "gone.jinja"),
    ],
)
def test_bad_files(tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(BadInput, match=expected):
        recipe.load(tmp_path / "recipe.yaml")


def test_a_missing_file_lists_the_presets() -> None:
    with pytest.raises(BadInput, match=r"nowhere\.yaml.*Presets: .*demo"):
        recipe.load("nowhere.yaml")


def test_a_recipe_travels_as_json(demo: Path) -> None:
    loaded, _ = recipe.load(demo)
    assert recipe.Recipe.model_validate_json(loaded.model_dump_json()) == loaded


def test_settings_of_a_recipe_that_came_as_data() -> None:
    given = recipe.load("demo")[0].model_dump(mode="json", exclude_unset=True)
    origins = {setting.path: setting.origin for setting in recipe.settings_of(recipe.parse(given))}
    assert origins["training.learning_rate"] == "recipe"
    assert origins["sources.tools.share"] == "recipe"
    assert origins["training.dropout"] == "default"


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ("schedule.timezone=Mars/Olympus", "schedule"),
        ("schedule.cron=daily", "schedule.cron"),
        ("placement=cloud", "placement"),
    ],
)
def test_when_and_where_a_night_runs_is_checked(change: str, field: str) -> None:
    with pytest.raises(BadInput) as refused:
        recipe.load("demo", [change])
    assert refused.value.field == field


@pytest.mark.parametrize(
    ("vary", "more", "expected"),
    [
        ("{field: training.rnk, choices: [8, 16]}", (), r"vary\.training\.rnk: .*Did you mean training\.rank\?"),
        ("{field: mixture.test, low: 0.1, high: 0.2}", (), r"vary\.mixture\.test: .*is no field that may vary"),
        (
            "{field: training.rank, choices: [8, 900]}",
            (),
            r"rank\.choices: 900 is no value of training\.rank \(.*512\)",
        ),
        ("{field: training.rank, low: 8.5, high: 20}", (), r"rank\.low: 8\.5 is no value .*valid integer"),
        ("{field: training.batch_size, low: 4, high: 12}", (), r"micro_batch_size 4 does not divide batch_size 5"),
        ("{field: training.rank, low: 8, high: 12}", (), r"training\.rank: 16 is outside .*the recipe as it stands"),
        ("{field: mixture.reasoning_share, low: 0.1, high: 0.9}", (), r"mixture\.reasoning_share: None is outside"),
        ("{field: training.rank, choices: [8, 16]}", ("training.method=full",), r"vary\.training\.rank: .* may vary"),
        ("{field: training.rank}", (), r"needs either low and high, or choices"),
        ("{field: training.rank, low: 32, high: 8}", (), r"needs a low below its high"),
        ("{field: training.dropout, low: 0, high: 0.5, log: true}", (), r"log, which needs a low above 0"),
        ("{field: training.rank, choices: [16, 16]}", (), r"at least two choices, each once"),
        ("", (), r"vary is empty"),
        (
            "{field: sources.tools.share, low: 0.2, high: 0.8}, {field: sources.chat.share, low: 0.08, high: 0.3}",
            (),
            r"search: 'sources\.tools\.share=0\.8, sources\.chat\.share=0\.3' makes no recipe",
        ),
        (
            "{field: training.rank, choices: [8, 16]}",
            ("search.storage=postgresql://me:secret@host/database",),
            r"search\.storage: 'postgresql://me:\*\*\*@host",
        ),
    ],
)
def test_a_search_is_refused_when_the_recipe_is_read(vary: str, more: tuple[str, ...], expected: str) -> None:
    with pytest.raises(BadInput, match=expected):
        recipe.load("demo", [f"search.vary=[{vary}]", *more])


def test_a_variant_is_a_recipe_of_its_own() -> None:
    vary = "{field: sources.tools.share, low: 0.2, high: 0.8}, {field: training.rank, choices: ['8', '16']}"
    loaded, _ = recipe.load("demo", [f"search.vary=[{vary}]"])
    resolved = recipe.resolved(loaded)
    assert resolved
    assert resolved.vary[1].choices == (8, 16)
    made = recipe.variant(loaded, {"sources.tools.share": 0.4, "training.rank": 8})
    assert made.search is None
    assert made.training.rank == 8
    assert [source.share for source in made.sources] == pytest.approx([0.4, 0.44, 0.16])  # the others' proportions stay
    assert made.evaluation == loaded.evaluation
