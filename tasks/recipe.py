"""The Recipe: config file, command line, form in the Prefect UI and documentation at once.

Every field carries a description with its unit. Unknown keys are errors that name the nearest
known one, and every resolved value knows where it came from: default, recipe or command line.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Self, Union, cast, get_args, get_origin
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tasks.errors import BadInput

Kind = Literal["chat", "reasoning", "tool"]
Mode = Literal["direct", "thinking"]
Role = Literal["target", "guard"]
ShareMeasure = Literal["supervised_tokens", "tokens", "rows"]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]
Share = Annotated[float, Field(gt=0, le=1)]
PRESETS = Path(__file__).resolve().parent.parent / "deployments" / "recipes"


class Part(BaseModel):
    """A part of a recipe: frozen, and closed to unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Base(Part):
    """The base model that adapters are trained on; always a pinned reference, never registered."""

    uri: str
    """Where the base model is: hf://org/name@revision, modelscope://org/name@revision, file://folder or
    sample://smollm2-135m-instruct."""
    chat_template: str | None = None
    """Jinja chat template, in full; null: the model's own. Put long ones in chat_template_file."""
    chat_template_file: str | None = None
    """A Jinja file beside the recipe; its text becomes chat_template when the recipe is read."""
    licence: str | None = None
    """Licence of a base model that states none itself, such as your own (SPDX identifier)."""
    max_length: int = Field(1024, ge=16, le=1_048_576)
    """Longest conversation that is trained on, in tokens."""


class Source(Part):
    """One source of conversations."""

    name: Name
    """Name of the source within the recipe."""
    uri: str
    """hf://org/name@revision, modelscope://org/name@revision, file://path-or-glob, s3://bucket/prefix-or-glob,
    postgresql://user@host/database, mlflow://experiment?filter=&feedback=, gym://task?size=&seed= or
    sample://name?size=&seed=."""
    kind: Kind
    """What its conversations teach: chat, reasoning (with a thinking trace) or tool (calls)."""
    share: Share | None = None
    """Share of the training split, in mixture.measure; the shares of all sources add up to 1. Only where
    mixture.method is fixed."""
    licence: str | None = None
    """Licence of a source that states none itself, such as your own data (SPDX identifier)."""
    format: str | None = None
    """Row format (alpaca, sharegpt, openai, ...); null: detected from the columns."""
    columns: dict[str, str] | None = None
    """Column mapping, from our field name to the source's column, where no format fits."""
    query: str | None = None
    """postgresql: one SELECT; it runs read only."""
    cursor: tuple[str, ...] = ()
    """postgresql: columns of the query that are unique together and grow, such as [created_at, id]: what comes
    after the last row's is new. Indexed, if the table is large."""
    overlap: float | None = Field(None, ge=0)
    """postgresql, mlflow: how far before the last row rows are read again each night, since some come late, in
    seconds (in steps, where the cursor is a whole number); null: 3600 for postgresql, a week for mlflow."""
    recheck: bool | None = None
    """postgresql, mlflow: read everything again each night, so that rows changed or deleted since are followed,
    however old; null: only where consent is set, since it may be withdrawn."""
    consent: str | None = None
    """Column that must be true in every row that is used (a dotted path reaches into objects); other rows are counted
    and not kept; null: none."""
    time: str | None = None
    """Column of a row's time: ISO 8601 text (UTC where it has no zone), or a number of seconds, milli- or microseconds
    since 1970."""
    max_age: float | None = Field(None, ge=1)
    """Greatest age of a row, in days; it is used no more from the day (UTC) on in which it reaches it; null: none."""

    @model_validator(mode="after")
    def _fits_its_scheme(self) -> Self:
        scheme = self.uri.partition("://")[0]
        if scheme == "postgresql" and not (self.query and self.cursor):
            raise ValueError(f"source {self.name!r} reads a database, which takes query and cursor")
        for field, schemes in _ONLY_FOR.items():
            if getattr(self, field) not in (None, ()) and scheme not in schemes:
                raise ValueError(f"{field} is for {' and '.join(schemes)} sources, and this is {scheme}")
        if len(set(self.cursor)) < len(self.cursor):
            raise ValueError("cursor names a column twice")
        if self.max_age is not None and self.time is None:
            raise ValueError("max_age needs time, the column of a row's time")
        return self


_OF_PEOPLE = ("file", "hf", "modelscope", "s3", "postgresql", "mlflow")
_ONLY_FOR = {
    "query": ("postgresql",),
    "cursor": ("postgresql",),
    "overlap": ("postgresql", "mlflow"),
    "recheck": ("postgresql", "mlflow"),
    # What is generated has no such columns: refused, for a rule that is not applied must not look as if it were.
    "consent": _OF_PEOPLE,
    "time": _OF_PEOPLE,
    "max_age": _OF_PEOPLE,
}


Severity = Literal["critical", "warning", "info"]
Handling = Literal["report", "set aside", "redact"]


class RuleSetting(Part):
    """What a recipe changes about one rule of the data gate; null: as the rule itself has it."""

    severity: Severity | None = None
    """critical and warning set a row that breaks the rule aside, and critical may stop the night; info only reports."""
    mostly: float | None = Field(None, ge=0, le=1)
    """Share of a source's rows that must keep the rule; with fewer, a critical rule stops the night."""


class Sensitive(Part):
    """What is done about secrets and personal data: report them, set the row aside, or redact: write a placeholder
    such as [EMAIL_1] instead, the same for the same text throughout a conversation; null: not looked for."""

    secret: Handling | None = "set aside"
    """Private keys and access tokens."""
    email_address: Handling | None = "report"
    """E-mail addresses outside the domains kept for examples."""
    phone_number: Handling | None = None
    """Telephone numbers that can be dialled: with a country's prefix, or as the phone_regions write them."""
    payment_card: Handling | None = None
    """Numbers of payment cards, with a right check digit."""
    bank_account: Handling | None = None
    """International bank account numbers (IBAN), with right check digits."""
    national_id: Handling | None = None
    """Social security numbers of the USA and resident identity numbers of China."""
    phone_regions: tuple[Annotated[str, Field(pattern="^[A-Z]{2}$")], ...] = ()
    """Countries (ISO 3166, two capitals) whose numbers are found without their prefix as well."""


class Drift(Part):
    """How far a source may move from the last night that passed. Rules of their own names (rows_moved, column_vanished,
    tokens_moved, ...) say how bad it is, under quality.rules, and are left out under quality.ignore."""

    fewer_rows: float = Field(0.5, gt=0, le=1)
    """Largest share of that night's rows that may be gone."""
    more_rows: float | None = Field(None, gt=0)
    """Most rows that may have come, as a share of that night's; null: any number."""
    psi: float = Field(0.25, gt=0)
    """Largest population stability index, of lengths, roles and languages."""
    ks: float = Field(0.15, gt=0, le=1)
    """Largest Kolmogorov-Smirnov statistic of lengths: the difference of the shares of rows up to any one length."""
    significance: float = Field(0.001, gt=0, le=0.1)
    """How often chance alone may exceed a bound where rows are few: there it is raised that far."""


class Quality(Part):
    """What the data gate asks of the conversations."""

    min_rows: int = Field(1, ge=1)
    """Fewest rows that a source must yield."""
    max_set_aside: float = Field(0.1, ge=0, le=1)
    """Largest share of a source's rows that may be set aside before the gate stops the night."""
    ignore: tuple[str, ...] = ()
    """Rules that are not applied, by name."""
    rules: dict[str, RuleSetting] = {}
    """What is changed about rules, by name."""
    over_length: Literal["set aside", "truncate", "keep"] = "set aside"
    """Conversations longer than base.max_length: set aside; truncate: end after the last exchange that fits (set
    aside where none does); keep: trained on whole, whatever that takes."""
    languages: tuple[Annotated[str, Field(pattern="^[a-z]{2}$")], ...] | None = None
    """Languages (ISO 639-1, two letters) that conversations may be in; null: any, and none is looked for."""
    sensitive: Sensitive = Sensitive()
    """What is done about secrets and personal data."""
    drift: Drift = Drift()
    """How far a source may move from the last night that passed."""


class Mixture(Part):
    """How the conversations become splits."""

    seed: int = Field(0, ge=0, lt=2**31)
    """Seed of the order and of the choice of rows where a source has more than its share."""
    test: float = Field(0.15, gt=0, lt=0.5)
    """Share of the prompts that are held out for evaluation, by hash of the prompt."""
    validation: float = Field(0.05, ge=0, lt=0.5)
    """Share of the prompts that are held out for the loss during training, by hash of the prompt."""
    method: Literal["fixed", "proportional", "temperature"] = "fixed"
    """Where the shares of the sources come from: fixed: their share fields; proportional: what they have after
    filtering; temperature: that to the power of 1 / temperature."""
    temperature: float = Field(2.0, ge=1, le=100)
    """method temperature: 1 is proportional; the larger, the nearer to equal shares."""
    measure: ShareMeasure = "supervised_tokens"
    """What shares are measured in: supervised tokens (those that the loss is computed on), tokens or rows."""
    reasoning_share: float | None = Field(None, gt=0, lt=1)
    """Share of all reasoning sources together, in the measure; within it and within the rest, sources keep their
    proportions; null: what their shares come to."""
    repeats: int = Field(1, ge=1, le=100)
    """Most epochs of a source within the training split: how often its rows may come, so that a small source does not
    limit the others."""
    rows: int | None = Field(None, ge=1)
    """Most rows in the training split; null: all that the shares allow."""
    min_rows: int = Field(1, ge=1)
    """Fewest rows in the training split; with fewer, the night stops."""
    same_prompt: Literal["first", "all"] = "first"
    """Conversations of one kind that ask the same and get other answers: first keeps the best-ranked source's
    first one and sets the others aside; all keeps them, in one split."""
    near_duplicates: float | None = Field(0.8, ge=0.3, le=1)
    """Jaccard similarity, of the runs of five words in two conversations, from which the worse-ranked one is set
    aside, and from which two prompts may not be in different splits; null: only exact duplicates are."""
    contamination_ngram: int | None = Field(13, ge=4, le=64)
    """Length, in words, of the runs that a training conversation may not share with a held-out question; null: off."""
    contamination_overlap: float = Field(0.5, gt=0, le=1)
    """Share of a held-out question's words, covered by such runs, from which a training conversation is set aside."""
    benchmarks: tuple[str, ...] = ()
    """Files of benchmark questions (JSON, JSON Lines, Parquet, CSV) that training may not see, beside those of the
    evaluation suites; path#column names the column."""


class Training(Part):
    """How a candidate is trained."""

    backend: Literal["unsloth", "transformers"] = "unsloth"
    """Training library: unsloth, on one device; or transformers, with TRL, PEFT and bitsandbytes, on any number."""
    method: Literal["qlora", "lora", "full"] = "qlora"
    """qlora: base in 4-bit NF4 with double quantisation; lora: base in 16 bit; full is refused: it makes no adapter."""
    seed: int = Field(0, ge=0, lt=2**31)
    """Seed of the adapter's initial weights and of the order of batches."""
    rank: int = Field(16, ge=1, le=512)
    """Rank of the LoRA matrices."""
    alpha: int = Field(32, ge=1, le=2048)
    """Scale of the LoRA update, as alpha / rank."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout on the LoRA input."""
    target_modules: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """Which layers get an adapter: all-linear or a list of module names."""
    rslora: bool = False
    """Scale the LoRA update by alpha / sqrt(rank) instead (rank-stabilised LoRA, arXiv 2312.03732)."""
    dora: bool = False
    """Train the magnitude of each weight column beside its direction (DoRA, arXiv 2402.09353)."""
    pissa: bool = False
    """Begin with the base's principal singular vectors (PiSSA, arXiv 2404.02948); the adapter is saved as plain LoRA
    of twice the rank."""
    loraplus_ratio: float | None = Field(None, ge=1, le=1000)
    """How many times the learning rate of A that of B is (LoRA+, arXiv 2402.12354); null: once."""
    neftune_alpha: float | None = Field(None, gt=0, le=100)
    """Strength of the noise on the input embeddings while training (NEFTune, arXiv 2310.05914); null: none."""
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw", "paged_adamw_8bit"] = "adamw"
    """adamw, with moments in 32 or 8 bit; a paged one moves them to the host's memory where the GPU's runs short."""
    learning_rate: float = Field(2e-4, gt=0, le=0.1)
    """Peak learning rate."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """Learning-rate schedule after the warm-up."""
    warmup_steps: int = Field(5, ge=0)
    """Optimiser steps of linear warm-up."""
    weight_decay: float = Field(0.0, ge=0, le=1)
    """Decoupled weight decay."""
    batch_size: int = Field(8, ge=1, le=4096)
    """Conversations per optimiser step."""
    micro_batch_size: int | None = Field(None, ge=1, le=4096)
    """Conversations per forward pass; must divide batch_size (by all processes); null: batch_size. Halved until the
    longest batch fits, while batch_size stays what it is."""
    processes: int = Field(1, ge=1, le=64)
    """Processes that train together on a node, one a GPU; more than one takes the transformers backend."""
    nodes: int = Field(1, ge=1, le=1024)
    """Nodes that train together, on a shared NIGHTOWL_HOME; more than one takes a rendezvous."""
    rendezvous: str | None = Field(None, pattern=r"^[^:/ ]+:[0-9]+$")
    """host:port of one of the nodes, where they find each other; null: this machine is alone."""
    epochs: float = Field(1.0, gt=0, le=100)
    """Passes over the training split."""
    max_steps: int | None = Field(None, ge=1)
    """Most optimiser steps; null: as many as the epochs take."""
    save_steps: int = Field(20, ge=1)
    """Optimiser steps between checkpoints."""

    @model_validator(mode="after")
    def _micro_batch_divides(self) -> Self:
        together = self.processes * self.nodes
        if self.batch_size % together:
            raise ValueError(f"batch_size {self.batch_size} can't be shared evenly by {together} processes")
        if self.micro_batch_size and self.batch_size // together % self.micro_batch_size:
            by = f" by {together} processes" if together > 1 else ""
            raise ValueError(
                f"micro_batch_size {self.micro_batch_size} does not divide batch_size {self.batch_size}{by}"
            )
        if self.nodes > 1 and not self.rendezvous:
            raise ValueError("several nodes need a rendezvous, the host:port where they find each other")
        return self


Measure = Literal[
    "tool_call",
    "final_answer",
    "chat_format",
    "held_out_loss",
    "thinking",
    "overlap",
    "choice",
    "instructions",
    "task",
]


class Suite(Part):
    """One evaluation suite and its part in the verdict."""

    name: Name
    """Name of the suite; of what it measures as well, where measure is null."""
    measure: Measure | None = None
    """tool_call: exact names and arguments, in any order, and no call where none fits; final_answer: right number,
    after one closed thinking block if asked for; chat_format: stops by itself, in plain text; held_out_loss: nats per
    token on held-out answers; thinking: one closed block and then an answer in thinking mode, no block in direct
    mode; overlap: ROUGE-L with the held-out answer. Of data alone: choice: the right letter; instructions: every rule
    of the prompt kept; task: what a reasoning-gym task's own scorer gives. null: what the name says."""
    kind: Kind | None = None
    """Kind of the held-out conversations that are its items; null: its items are in data."""
    data: str | None = None
    """A benchmark's file, folder or glob (BFCL, GSM8K, IFEval, MMLU), or gym://task?size=&seed=; null: held-out
    conversations."""
    role: Role
    """target: must be better; guard: must not be worse than its margin."""
    mode: Mode = "direct"
    """direct: no thinking; thinking: with a thinking block."""
    items: int = Field(100, ge=1)
    """Most items, taken in an order that does not change as data grows."""
    margin: float = Field(0.0, ge=0)
    """How much worse a guard may be, in the unit of its score (points as a fraction; nats per token)."""
    max_new_tokens: int = Field(128, ge=1, le=32_768)
    """Bound of an answer, in tokens."""

    @model_validator(mode="after")
    def _knows_what_it_measures(self) -> Self:
        if self.measure is None and self.name not in get_args(Measure):
            raise ValueError(f"suite {self.name!r} needs measure, one of {', '.join(get_args(Measure))}")
        if (self.kind is None) == (self.data is None):
            raise ValueError(f"suite {self.name!r} needs either kind, of held-out conversations, or data")
        if self.kind is not None and self.measures in _OF_DATA:
            raise ValueError(f"suite {self.name!r} measures {self.measures}, which takes data")
        if self.data is not None and self.measures == "held_out_loss":
            raise ValueError(f"suite {self.name!r} measures held_out_loss, which takes held-out conversations")
        return self

    @property
    def measures(self) -> Measure:
        """What is scored."""
        return self.measure or cast(Measure, self.name)


_OF_DATA = ("choice", "instructions", "task")


class Evaluation(Part):
    """How base, champion and candidate are compared."""

    suites: tuple[Suite, ...]
    """The suites; at least one target."""
    batch_size: int = Field(16, ge=1, le=1024)
    """Prompts generated together."""
    rotate: bool = True
    """Draw a suite's items anew from the held-out split whenever that has changed, so that no test set is worn out;
    false: keep to the same items, which spares evaluating the champion on new ones."""

    @model_validator(mode="after")
    def _has_a_target(self) -> Self:
        names = [suite.name for suite in self.suites]
        if doubled := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"suite {doubled[0]!r} appears more than once")
        if not any(suite.role == "target" for suite in self.suites):
            raise ValueError("no suite has the role 'target', so no candidate could ever be better")
        return self


class Gate(Part):
    """When a candidate is let out."""

    year_error: float = Field(0.04, gt=0, le=0.5)
    """Chance that any 365 days of nights promote a candidate that is no better than its champion."""
    confidence: float = Field(0.95, gt=0.5, lt=1)
    """Two-sided confidence of the intervals that are shown, that guards are held to, and that call a model worse."""
    min_items: int = Field(20, ge=2)
    """Fewest paired items a suite needs before the gate reads anything into it."""
    approval: Literal["none", "required"] = "none"
    """required: what the gate would let out waits for a person; a flow run in Prefect asks."""
    approval_hours: float = Field(12, gt=0, le=24 * 30)
    """How long that flow run waits for an answer; without one, the champion stays."""


class Registry(Part):
    """Where champions are kept."""

    model: str | None = Field(None, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    """Registered model in MLflow; null: nightowl-<recipe name>."""
    keep_versions: int = Field(20, ge=1)
    """Newest versions that `nightowl prune` keeps, beside champions of today and ever, which always stay."""
    keep_days: float = Field(30, ge=1)
    """Days that a version, and an output of the store since a night last used it, is kept in any case."""
    licences: Literal["flag", "refuse"] = "flag"
    """Sources and a base model whose licence is not stated or non-commercial: flag: told on the model card; refuse:
    the night stops before anything is validated or trained."""


class Schedule(Part):
    """When a deployed recipe's night starts by itself."""

    cron: str = Field("0 2 * * *", pattern=r"^\S+( \S+){4}$")
    """Minute, hour, day of the month, month, day of the week."""
    timezone: str = "UTC"
    """Time zone of the cron line, by IANA name such as Asia/Shanghai."""

    @model_validator(mode="after")
    def _zone_exists(self) -> Self:
        try:
            ZoneInfo(self.timezone)
        except (ZoneInfoNotFoundError, ValueError):
            raise ValueError(f"{self.timezone!r} is no time zone; one is Europe/Berlin") from None
        return self


class Price(Part):
    """What an hour costs, for the night's bill."""

    gpu_hour: float = Field(0, ge=0)
    """Price of an hour of training or evaluation."""
    data_hour: float = Field(0, ge=0)
    """Price of an hour of any other stage."""
    currency: str = Field("USD", pattern="^[A-Z]{3}$")
    """Currency of both (ISO 4217)."""


class Recipe(Part):
    """One night, described."""

    name: Name
    """Name of the recipe; also of its MLflow experiment and, by default, its registered model."""
    base: Base
    """The base model."""
    sources: tuple[Source, ...]
    """Where conversations come from."""
    quality: Quality = Quality()
    """What the data gate asks."""
    mixture: Mixture = Mixture()
    """How conversations become splits."""
    training: Training = Training()
    """How a candidate is trained."""
    evaluation: Evaluation
    """How models are compared."""
    gate: Gate = Gate()
    """When a candidate is let out."""
    registry: Registry = Registry()
    """Where champions are kept."""
    placement: Literal["here", "pools"] = "here"
    """here: every stage runs where the night does; pools: data stages on the data pool, training and evaluation on
    the gpu pool."""
    schedule: Schedule | None = None
    """When its night starts by itself, once deployed; null: only by hand or by an event."""
    price: Price = Price()
    """What an hour costs."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if not self.sources:
            raise ValueError("sources is empty")
        names = [source.name for source in self.sources]
        if doubled := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"source {doubled[0]!r} appears more than once")
        _check_shares(self.sources, self.mixture)
        kinds = {source.kind for source in self.sources}
        for suite in self.evaluation.suites:
            if suite.kind is not None and suite.kind not in kinds:
                raise ValueError(f"suite {suite.name!r} needs {suite.kind} conversations, and no source has that kind")
        if self.mixture.test + self.mixture.validation >= 1:
            raise ValueError("mixture.test and mixture.validation leave nothing to train on")
        return self

    @property
    def registered_model(self) -> str:
        """Name of the registered model in MLflow."""
        return self.registry.model or f"nightowl-{self.name}"


def _check_shares(sources: Sequence[Source], mixture: Mixture) -> None:
    given = {source.name: source.share for source in sources if source.share is not None}
    if mixture.method != "fixed" and given:
        raise ValueError(f"source {next(iter(given))!r} has a share, and mixture.method is {mixture.method}")
    if mixture.method == "fixed":
        if missing := [source.name for source in sources if source.share is None]:
            raise ValueError(f"source {missing[0]!r} has no share; leave it out only with another mixture.method")
        if abs((total := sum(given.values())) - 1) > 1e-6:
            shares = ", ".join(f"{name} {share:g}" for name, share in given.items())
            raise ValueError(f"the sources' shares add up to {total:g}, not 1 ({shares})")
    reasoning = {source.kind == "reasoning" for source in sources}
    if mixture.reasoning_share is not None and len(reasoning) == 1:
        raise ValueError("mixture.reasoning_share needs sources of the kind reasoning and of another kind")
    if mixture.rows is not None and mixture.rows < mixture.min_rows:
        raise ValueError(f"mixture.rows {mixture.rows} is below mixture.min_rows {mixture.min_rows}")


class Setting(BaseModel):
    """One resolved value and where it came from."""

    path: str
    value: Any
    origin: Literal["default", "recipe", "command line"]


def load(path: str | Path, overrides: Sequence[str] = ()) -> tuple[Recipe, list[Setting]]:
    """Read a recipe file (or a preset by name), apply `path=value` overrides, and say where each value came from.

    Raises BadInput for a missing or malformed file, an unknown key and a value out of bounds.
    """
    file = _find(path)
    try:
        given = yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{file}:{mark.line + 1}" if mark else str(file)
        raise BadInput(place, getattr(error, "problem", "?"), "is not YAML", "Correct that line.") from error
    except UnicodeDecodeError as error:
        raise BadInput(str(file), error.reason, "is not UTF-8 text", "Save the recipe as UTF-8.") from error
    if not isinstance(given, dict):
        raise BadInput(str(file), type(given).__name__, "is no mapping of recipe fields", "See `nightowl plan demo`.")
    set_paths = [_override(given, text) for text in overrides]
    _inline_template(given, file.parent)
    recipe = parse(given)
    return recipe, list(_settings(recipe, given, set_paths))


def parse(given: Mapping[str, Any]) -> Recipe:
    """A Recipe of plain data; raises BadInput that names the first field at fault."""
    from tasks.sources import parse_uri

    try:
        recipe = Recipe.model_validate(given)
    except ValidationError as error:
        raise _explain(error, given) from error
    parse_uri(recipe.base.uri, field="base.uri")
    for source in recipe.sources:
        parse_uri(source.uri, field=f"sources.{source.name}.uri")
    return recipe


def settings_of(recipe: Recipe) -> list[Setting]:
    """Each value of a recipe that came as data rather than by `load`, and whether it was given or is the default."""
    return list(_settings(recipe, recipe.model_dump(exclude_unset=True), ()))


def is_recipe(text: str) -> bool:
    """Whether a text names a recipe (a YAML file, or a preset) rather than data or a model."""
    return text.endswith((".yaml", ".yml")) or (PRESETS / f"{text}.yaml").is_file()


def _find(path: str | Path) -> Path:
    file = Path(path)
    if file.is_file():
        return file
    preset = PRESETS / f"{path}.yaml"
    if preset.is_file():
        return preset
    names = sorted(p.stem for p in PRESETS.glob("*.yaml"))
    raise BadInput("recipe", str(path), "is neither a file nor a preset", f"Presets: {', '.join(names)}.")


def _override(given: dict[str, Any], text: str) -> str:
    """Set `a.b=value` in the recipe's data; lists are addressed by index or by the entry's `name`."""
    path, equals, value = text.partition("=")
    if not equals or not path:
        raise BadInput("--set", text, "is not of the form path=value", "For example --set training.seed=1.")
    keys = path.split(".")
    at: Any = given
    for key in keys[:-1]:
        at = _step(at, key, path)
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise BadInput(f"--set {path}", value, "is not a YAML value", "Quote it.") from error
    # YAML 1.1 reads 2e-4 as text; a person who writes it means a number.
    if isinstance(parsed, str):
        with suppress(ValueError):
            parsed = float(parsed)
    if isinstance(at, list):
        at[_index(at, keys[-1], path)] = parsed
    else:
        at[keys[-1]] = parsed
    return path


def _step(at: Any, key: str, path: str) -> Any:
    if isinstance(at, list):
        return at[_index(at, key, path)]
    if isinstance(at, dict):
        at.setdefault(key, {})
        if at[key] is None:
            at[key] = {}
        return at[key]
    raise BadInput(f"--set {path}", key, "is below a plain value", "See `nightowl plan` for the fields.")


def _index(entries: list[Any], key: str, path: str) -> int:
    names = [entry.get("name") if isinstance(entry, dict) else None for entry in entries]
    if key in names:
        return names.index(key)
    if key.isdigit() and int(key) < len(entries):
        return int(key)
    known = ", ".join(str(name) for name in names)
    raise BadInput(f"--set {path}", key, "is no entry of that list", f"Entries: {known}.")


def _inline_template(given: dict[str, Any], folder: Path) -> None:
    base = given.get("base")
    if not isinstance(base, dict) or not isinstance(base.get("chat_template_file"), str):
        return
    if base.get("chat_template") is not None:
        raise BadInput(
            "base.chat_template_file",
            base["chat_template_file"],
            "is given beside base.chat_template",
            "Keep one of them.",
        )
    file = folder / base["chat_template_file"]
    try:
        base["chat_template"] = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(
            "base.chat_template_file",
            str(file),
            f"cannot be read ({error})",
            "Give a Jinja file relative to the recipe.",
        ) from error


def _explain(error: ValidationError, given: Any) -> BadInput:
    from tasks.sources import redacted

    first = error.errors()[0]
    location = [part for part in first["loc"] if not (isinstance(part, str) and part.startswith("literal["))]
    field = ".".join(_named(given, location)) or "recipe"
    if first["type"] == "extra_forbidden":
        known = _known_keys(location[:-1])
        near = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.4)
        way_out = f"Did you mean {near[0]!r}? " if near else ""
        way_out += f"Known here: {', '.join(known)}."
        return BadInput(field, first["input"], "is not a field of the recipe", way_out)
    if first["type"] == "missing":
        return BadInput(field, None, "is missing", "Every recipe needs it; `nightowl plan demo` shows one.")
    message = first["msg"].removeprefix("Value error, ")
    value = first["input"] if not isinstance(first["input"], dict | BaseModel) else "..."
    value = redacted(value) if isinstance(value, str) else value
    return BadInput(field, value, f"is refused ({message})", "Correct it in the recipe or with --set.")


def _named(data: Any, keys: Sequence[int | str]) -> list[str]:
    """A path in a recipe or its data, with list entries named rather than numbered where they have a name."""
    named = []
    for key in keys:
        try:
            data = getattr(data, str(key)) if isinstance(data, Part) else data[key]
        except (AttributeError, KeyError, IndexError, TypeError):
            data = None
        name = data.get("name") if isinstance(data, dict) else getattr(data, "name", None)
        named.append(name if isinstance(key, int) and isinstance(name, str) else str(key))
    return named


def _known_keys(location: Iterable[int | str]) -> list[str]:
    model: Any = Recipe
    for part in location:
        if isinstance(part, str) and part in model.model_fields:
            model = _part_of(model.model_fields[part].annotation)
    return sorted(model.model_fields)


def _part_of(annotation: Any) -> Any:
    """The recipe part inside an annotation such as `tuple[Source, ...]` or `Part | None`."""
    if get_origin(annotation) in (tuple, dict, Union, UnionType):
        return next((_part_of(arg) for arg in get_args(annotation) if _is_part(_part_of(arg))), annotation)
    return annotation


def _is_part(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Part)


def _settings(recipe: Recipe, given: Any, set_paths: Sequence[str]) -> Iterator[Setting]:
    for path, value, keys in _leaves(recipe):
        origin: Literal["default", "recipe", "command line"] = "recipe" if _has(given, keys) else "default"
        by_name = ".".join(_named(recipe, keys))
        if any(
            text in (path, by_name)
            or any(whole.startswith(text + ".") or text.startswith(whole + ".") for whole in (path, by_name))
            for text in set_paths
        ):
            origin = "command line"
        yield Setting(path=by_name, value=value, origin=origin)


def _leaves(value: Any, keys: tuple[str | int, ...] = ()) -> Iterator[tuple[str, Any, tuple[str | int, ...]]]:
    if isinstance(value, Part):
        for name in type(value).model_fields:
            yield from _leaves(getattr(value, name), (*keys, name))
    elif isinstance(value, tuple) and value and isinstance(value[0], Part):
        for index, entry in enumerate(value):
            yield from _leaves(entry, (*keys, index))
    else:
        yield ".".join(map(str, keys)), value, keys


def _has(given: Any, keys: Sequence[str | int]) -> bool:
    at = given
    for key in keys:
        try:
            at = at[key]
        except (KeyError, IndexError, TypeError):
            return False
    return True
