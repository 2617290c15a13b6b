"""The order in which the Prefect server takes events, over its own restarts.

Prefect holds an event that follows another one back until it has seen that one (a pool that is not ready after it was
ready, a run that is suspended after it ran), for up to 15 minutes. What it has seen it knows in memory alone: after a
restart, events wait for what the server before has dealt with, or has lost. A pool without a worker would be told a
quarter of an hour late, and a night that is suspended would be taken for one whose process is gone.

The server loads this module by its setting PREFECT_SERVER_EVENTS_CAUSAL_ORDERING.
"""

from __future__ import annotations

import time
from uuid import UUID

from prefect.server.events.ordering import memory
from prefect.server.events.schemas.events import Event

_STARTED = time.time()


class CausalOrdering(memory.CausalOrdering):
    """Prefect's own order in memory; what is older than this server counts as seen as well."""

    async def event_has_been_seen(self, event: UUID | Event) -> bool:
        return await super().event_has_been_seen(event) or _is_older(event.id if isinstance(event, Event) else event)


def _is_older(event_id: UUID) -> bool:
    """Whether an event was made before this server started: version 7 of UUIDs opens with milliseconds since 1970
    (RFC 9562, 5.7), and Prefect names events, and the states that they tell of, by it."""
    return event_id.version == 7 and (event_id.int >> 80) / 1000 < _STARTED
