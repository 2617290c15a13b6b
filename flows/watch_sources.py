"""Has anything upstream moved? Cheap enough to ask every hour (pool: data)."""

from __future__ import annotations

from prefect import flow
from prefect.events import emit_event

from flows.screen import log
from tasks.recipe import Recipe
from tasks.store import Store
from tasks.watch import Look, watch


@flow(name="watch-sources", flow_run_name="watch: {recipe.name}")
def watch_sources(recipe: Recipe) -> list[Look]:
    """Ask the base and every source where it points; what moved since the last night is told as an event."""
    looks = watch(recipe, Store.open())
    for look in looks:
        state = (
            f"moved from {look.before[:12]}" if look.moved and look.before else "as before" if look.before else "new"
        )
        log.info("%-12s at %s, %s  %s", look.name, look.revision[:12], state, look.uri)
    if moved := [look for look in looks if look.moved]:
        emit_event(
            event="nightowl.source.moved",
            resource={"prefect.resource.id": f"nightowl.recipe.{recipe.name}"},
            payload={"recipe": recipe.name, "moved": [look.model_dump(mode="json") for look in moved]},
        )
    return list(looks)
