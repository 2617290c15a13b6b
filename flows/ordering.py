"""The order in which the Prefect server takes events, over its own restarts.

Prefect holds an event that follows another one back until it has seen that one (a pool that is not ready after it was
ready, a run that is suspended after it ran), for up to 15 minutes. What it has seen it knows in memory alone: after a
restart, events wait for what the server before has long dealt with. A pool without a worker would be told a quarter
of an hour late, and a night that is suspended would be taken for one whose process is gone.

The server loads this module by its setting PREFECT_SERVER_EVENTS_CAUSAL_ORDERING.
"""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import UUID

import sqlalchemy as sa
from prefect.server.database import provide_database_interface
from prefect.server.events.ordering import memory
from prefect.server.events.schemas.events import Event

_STARTED = datetime.now(UTC)


class CausalOrdering(memory.CausalOrdering):
    """Prefect's own order in memory; what an earlier server has recorded counts as seen as well."""

    async def event_has_been_seen(self, event: UUID | Event) -> bool:
        if await super().event_has_been_seen(event):
            return True
        db = provide_database_interface()
        event_id = event.id if isinstance(event, Event) else event
        query = sa.select(db.Event.id).where(db.Event.id == event_id, db.Event.received < _STARTED)
        async with db.session_context() as session:
            return await session.scalar(query) is not None
