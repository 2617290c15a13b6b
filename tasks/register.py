"""register: put a judged candidate into the registry, and move the champion.

The candidate is logged as a model of its training run and becomes a version of the recipe's registered model, with
its lineage, scores and verdict on it. Whether it also becomes champion is for `promote`, which moves one
candidate at a time, only what the gate let through, and only while the champion it was judged against still reigns.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

from tasks import registry
from tasks.conversations import Conversations, Renderer
from tasks.errors import BadInput, Refused, WorldFailed
from tasks.evaluation import Scores, Verdict
from tasks.mixture import TokenisedMixture
from tasks.recipe import Recipe, Value
from tasks.registry import BASE, Champion, Decision, Move, Night, Snapshots, SuiteRow, Version
from tasks.sources import BaseSnapshot
from tasks.store import Store, digest, home
from tasks.training import Adapter


def register(
    recipe: Recipe,
    night: Night,
    adapter: Adapter,
    mixture: TokenisedMixture,
    snapshots: Snapshots,
    conversations: Sequence[Conversations],
    base: BaseSnapshot,
    scores: Mapping[str, Scores],
    verdict: Verdict,
    store: Store,
    candidate: str = "candidate-1",
    values: Mapping[str, Value] = {},
) -> Version:
    """The adapter as a version of the registered model, alias `challenger` until it is promoted.

    `scores`: of the base, the candidate and, where there is one, the champion, under any keys; `candidate`: its name
    in the night; `values`: what a search tried in it. An adapter that is
    registered already keeps its version and gets the new verdict.

    Raises BadInput for inputs that do not belong together or may not be registered, WorldFailed when MLflow
    does not answer.
    """
    _belong_together(adapter, mixture, base, verdict)
    mlflow, model = registry.client(), recipe.registered_model
    rows = registry.suite_rows(registry.by_role(scores.values(), verdict), verdict, store)
    night.verdict(verdict)
    judged = _verdict_tags(verdict, rows)
    picture = store.folder(mixture) / "composition.png"
    made_of = (recipe, base, adapter, mixture, snapshots, conversations)
    card = registry.model_card(*made_of, rows, verdict, with_picture=picture.exists())
    gates, flow_run = registry.gate_pages(conversations, store), night.flow_run

    def page(run: str) -> str:
        links = registry.story_links(night.experiment_id, night.id, run, gates, flow_run)
        return registry.version_page(card, links, run)

    with registry.answers(), FileLock(_lock(model)):
        registry.ensure_model(mlflow, model, recipe.name)
        version = registry.find(mlflow, model, adapter.address)
        if version is None:
            tags = {
                **_lineage_tags(recipe, night, adapter, mixture, snapshots, conversations, base),
                "nightowl.candidate": candidate,
                "nightowl.values": registry.compact(dict(values)),
                **({"nightowl.flow_run": flow_run} if flow_run else {}),
                **judged,
            }
            version = _enter(night, *made_of, rows, card, page, tags, store)
        else:
            registry.judge_again(mlflow, version, judged, page(version.run_id))
        if registry.alias_version(mlflow, model, "champion") != version.version:
            mlflow.set_registered_model_alias(model, "challenger", str(version.version))
        site = registry.site()
        links = registry.story_links(night.experiment_id, night.id, version.run_id, gates, flow_run, version, site)
        with tempfile.TemporaryDirectory(dir=home(), prefix="register-") as folder:
            graph = registry.lineage_graph(base, snapshots, conversations, mixture, adapter, verdict, version, links)
            (Path(folder) / "lineage.svg").write_text(graph, encoding="utf-8")
            if picture.exists():
                shutil.copyfile(picture, Path(folder) / registry.MIXTURE_PICTURE)
            registry.illustrate(mlflow, version, Path(folder))
    held = (adapter.address, mixture.address, base.address, verdict.address)
    store.pin(registry.registry_id(), f"{model}-{version.version}", held)
    night.tags({f"nightowl.version.{adapter.address}": f"{model}/{version.version}"})
    night.tell_story(version)
    return version


def promote(version: Version, who: str | None = None, why: str | None = None, override: str | None = None) -> Move:
    """Make a version champion; the one before becomes `previous`. Doing it twice changes nothing.

    `override`: a person's reason to promote what the gate did not let through.

    Raises Refused when the gate did not say promote, and when the champion is no longer the one that the version
    was judged against; BadInput for a version that is gone.
    """
    mlflow = registry.client()
    with registry.answers():
        entry = registry.entry_of(mlflow, version.model, version.version)
    if entry is None:
        raise BadInput("VERSION", version.version, f"of {version.model} is gone", "See `nightowl candidates`.")
    tags = entry.tags
    verdict, against = tags["nightowl.verdict"], tags["nightowl.against"]
    said = f"the gate said {verdict}: {' '.join(json.loads(tags['nightowl.reasons']))}"

    def decide(found: int | None, previous: int | None) -> Decision:
        if found == version.version:
            return Decision(None, "already champion")
        if not _stands(mlflow, version.model, version.version):
            return Decision(None, "refused: the version is being removed")
        if verdict != "promote" and override is None:
            return Decision(None, f"refused: {said}")
        reigning = BASE
        if found is not None:
            # A champion that another tool made, or that somebody made champion by hand, is another one as well.
            reigning = mlflow.get_model_version(version.model, str(found)).tags.get("nightowl.adapter")
        if reigning != against:
            name = f"version {found}" if found is not None else "none"
            return Decision(None, f"refused: judged against {_name(against)}, but champion is {name} now")
        return Decision(
            version.version, f"promoted over {f'version {found}' if found is not None else 'the base model'}"
        )

    reason = f"override: {override}; {said}" if override else (why or said)
    done = registry.move(mlflow, version.model, "promote", version.version, decide, who, reason)
    if done.outcome.startswith("refused"):
        way_out = "Promote it with a reason to override." if "judged" not in done.outcome else "Evaluate it again."
        raise Refused(f"{version.model} version {version.version}: {done.outcome}. {way_out}")
    _announce(version.model, done)
    return done


def decline(version: Version, who: str, why: str) -> Move:
    """Write down that a person would not let a version out; the champion stays."""

    def decide(found: int | None, previous: int | None) -> Decision:
        return Decision(None, f"not approved: {why}")

    return registry.move(registry.client(), version.model, "promote", version.version, decide, who, why)


def rollback(model: str, to: int | None = None, who: str | None = None, why: str = "") -> Move:
    """Make an earlier champion the champion again: `to`, else the one before, and the one before that the next time.

    Whoever was rolled back from is gone to again only where `to` names it. Raises BadInput when there is no such
    version or nothing to go back to, Refused for one that was never champion and that the gate did not let through.
    """
    mlflow = registry.client()
    if to is not None and registry.get(model, to) is None:
        raise BadInput("--to", to, f"is no version of {model}", "See `nightowl candidates`.")

    def decide(found: int | None, previous: int | None) -> Decision:
        journal = registry.moves(mlflow, model)
        target = to
        if to is None:
            target = next((v for v in _back(journal, found, previous) if _stands(mlflow, model, v)), None)
        if target is None:
            return Decision(None, "refused: there is no earlier champion to go back to")
        if target == found:
            return Decision(None, "already champion")
        verdict = mlflow.get_model_version(model, str(target)).tags.get("nightowl.verdict")
        ever = {m.found for m in journal} | {m.to for m in journal if m.moved}
        if verdict != "promote" and target not in ever:
            return Decision(None, f"refused: it never was champion, and the gate said {verdict}")
        if not _stands(mlflow, model, target):
            return Decision(None, "refused: the version is being removed")
        return Decision(target, f"rolled back from {f'version {found}' if found is not None else 'no champion'}")

    done = registry.move(mlflow, model, "rollback", to, decide, who, why)
    if done.outcome.startswith("refused") and to is None:
        raise BadInput("rollback", model, "has no previous champion", "Name a version with --to.")
    if done.outcome.startswith("refused"):
        raise Refused(f"{model} version {to}: {done.outcome}. `nightowl promote` lets a version out with a reason.")
    _announce(model, done)
    return done


def _back(journal: Sequence[Move], champion: int | None, previous: int | None) -> list[int]:
    """Where a rollback may go, the best first; the alias `previous` where the journal knows nothing."""
    known = registry.earlier_champions(journal, champion)
    last = next((move for move in reversed(journal) if move.moved), None)
    if not known and previous is not None and previous != champion and not (last and last.kind == "rollback"):
        return [previous]
    return known


def _stands(mlflow: Any, model: str, version: int) -> bool:
    """Whether a version is one of Nightowl's that is there and not about to go."""
    entry = registry.entry_of(mlflow, model, version)
    return entry is not None and registry.is_ours(entry)


def registered(recipe: Recipe, verdict: Verdict) -> Version | None:
    """The version that carries this very verdict, or None: what was judged before need not be registered again."""
    mlflow = registry.client()
    with registry.answers():
        version = registry.find(mlflow, recipe.registered_model, verdict.candidate)
        if version is None:
            return None
        tags = mlflow.get_model_version(version.model, str(version.version)).tags
    return version if tags["nightowl.verdict_address"] == verdict.address else None


def champion_adapter(champion: Champion, store: Store) -> Adapter:
    """The champion's adapter; raises WorldFailed when the store has lost it."""
    adapter = store.find(Adapter, champion.adapter)
    if adapter is None:
        raise WorldFailed(
            f"{champion.model} version {champion.version}",
            f"is champion, but its adapter {champion.adapter[:12]} is not in the store {store.root}",
            "Set NIGHTOWL_STORE to the store it was made in, or roll back to a version whose adapter is here.",
        )
    return adapter


def _enter(
    night: Night,
    recipe: Recipe,
    base: BaseSnapshot,
    adapter: Adapter,
    mixture: TokenisedMixture,
    snapshots: Snapshots,
    conversations: Sequence[Conversations],
    rows: Sequence[SuiteRow],
    card: str,
    page: Callable[[str], str],
    tags: Mapping[str, str],
    store: Store,
) -> Version:
    """`page`: the version's description, by the id of its training run."""
    mlflow = night.mlflow
    run_id = registry.training_run(night, adapter)
    if run_id is None:
        # Trained under another tracking server, or before its run could be recorded: it gets a run here.
        with night.stage("register", adapter.short) as stage:
            stage.inputs(mixture, snapshots, conversations)
            stage.made(adapter)
            run_id = stage.id
    reference = registry.base_reference(base)
    config = {
        "base": reference,
        "four_bit": recipe.training.method == "qlora",
        "max_new_tokens": max(suite.max_new_tokens for suite in recipe.evaluation.suites),
        "call_style": Renderer.open(store.folder(adapter) / "adapter").call_style.model_dump(mode="json"),
    }
    record = registry.make_record(recipe, base, snapshots, conversations, mixture, adapter)
    params = {"base": base.uri, "method": recipe.training.method}
    if recipe.training.method != "full":
        params["rank"] = str(recipe.training.rank)
    with tempfile.TemporaryDirectory(dir=home(), prefix="register-") as folder:
        packed, work = Path(folder) / "adapter", Path(folder)
        registry.pack(adapter, base, card, store, packed, store.folder(mixture) / "composition.png")
        model_id = registry.log_model(
            mlflow,
            run_id,
            night.experiment_id,
            recipe.registered_model,
            packed,
            record,
            work,
            config,
            params,
            adapter.steps,
        )
    data = (f"{mixture.recipe}-test", mixture.splits["test"].digest[:36])
    for entry in conversations:
        with registry.answers():
            mlflow.log_artifacts(run_id, str(store.folder(entry) / "docs"), f"{registry.GATE}/{entry.source}")
    if (docs := store.folder(mixture) / "docs").is_dir():
        with registry.answers():
            mlflow.log_artifacts(run_id, str(docs), f"{registry.GATE}/mixture")
    registry.log_scores(mlflow, run_id, model_id, registry.score_metrics(rows), adapter.steps, data)
    version = registry.create(mlflow, recipe.registered_model, run_id, model_id, tags, page(run_id), adapter.address)
    registry.tell_version(record, version, night.id)
    return version


def _belong_together(adapter: Adapter, mixture: TokenisedMixture, base: BaseSnapshot, verdict: Verdict) -> None:
    expected = {
        "the adapter's base": (adapter.base, base.address),
        "the adapter's mixture": (adapter.mixture, mixture.address),
        "the verdict's candidate": (verdict.candidate, adapter.address),
    }
    for name, (found, wanted) in expected.items():
        if found != wanted:
            raise BadInput(name, found, f"is not {wanted}", "Register what was judged, with what it was made of.")


def _lineage_tags(
    recipe: Recipe,
    night: Night,
    adapter: Adapter,
    mixture: TokenisedMixture,
    snapshots: Snapshots,
    conversations: Sequence[Conversations],
    base: BaseSnapshot,
) -> dict[str, str]:
    findings = {entry.source: {f.rule: f.rows for f in entry.findings if f.rows} for entry in conversations}
    return {
        "nightowl.adapter": adapter.address,
        "nightowl.base": registry.pinned(base.uri, base.revision),
        "nightowl.base_address": base.address,
        "nightowl.base_weights": adapter.base_weights,
        **registry.mixture_tags(mixture),
        "nightowl.shares": registry.compact({k: [v.asked, round(v.reached, 6)] for k, v in mixture.shares.items()}),
        **registry.source_tags(snapshots, conversations),
        "nightowl.set_aside": registry.compact({entry.source: dict(entry.set_aside) for entry in conversations}),
        "nightowl.findings": registry.compact(findings),
        "nightowl.recipe": recipe.name,
        "nightowl.recipe_digest": digest(recipe),
        "nightowl.night": night.id,
        "nightowl.environment": registry.compact(adapter.environment),
        "nightowl.device": adapter.device,
        **registry.code_tags(),
    }


def _verdict_tags(verdict: Verdict, rows: Sequence[SuiteRow]) -> dict[str, str]:
    means = {row.name: row.means["candidate"] for row in rows}
    intervals = {name: [round(mean.low, 6), round(mean.high, 6)] for name, mean in means.items()}
    broken = [c.suite for c in verdict.comparisons if c.role == "guard" and c.outcome != "not worse"]
    return {
        "nightowl.verdict": verdict.decision,
        "nightowl.broken_guards": registry.compact(broken),
        "nightowl.verdict_address": verdict.address,
        "nightowl.against": verdict.champion or BASE,
        "nightowl.reasons": registry.compact(list(verdict.reasons)),
        "nightowl.scores": registry.compact({name: round(mean.value, 6) for name, mean in means.items()}),
        "nightowl.intervals": registry.compact(intervals),
    }


def _lock(model: str) -> Path:
    folder = home() / "locks"
    folder.mkdir(exist_ok=True)
    return folder / f"{model}.register.lock"


def _name(against: str) -> str:
    return "the base model" if against == BASE else f"adapter {against[:12]}"


def _announce(model: str, done: Move) -> None:
    """Tell of a move: the webhook where there is one, and Prefect inside a run."""
    if not done.moved:
        return
    registry.post(done.kind, {"model": model, **done.model_dump(mode="json")})
    from prefect.context import FlowRunContext, TaskRunContext

    if not (FlowRunContext.get() or TaskRunContext.get()):
        return
    from prefect.events import emit_event

    resource: dict[str, Any] = {"prefect.resource.id": f"nightowl.champion.{model}"}
    emit_event(event=f"nightowl.{done.kind}", resource=resource, payload=done.model_dump(mode="json"))
