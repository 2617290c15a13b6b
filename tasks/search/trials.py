"""What was tried, in Optuna's storage: a SQLite file in the store, or the recipe's PostgreSQL.

A study for each space, named by the recipe and the space's digest, and a trial for each candidate, which is there
before anything is trained and is told how it ended when its night does. A changed space begins a new study; what was
tried in the recipe's other studies still counts where it lies in the new space, since a trial keeps the value of every
field that may vary. A trial whose night has died without telling belongs to the next night, which so goes on with what
was proposed; one that NIGHTS nights were killed with counts as failed, so that a candidate that kills its nights comes
to an end.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

from filelock import FileLock

from tasks.errors import WorldFailed
from tasks.recipe import Recipe, Search, Value, may_vary, value_of, variant
from tasks.search.sampling import Point, distributions, propose, quiet_optuna, score
from tasks.search.schema import Outcome, Proposal, Tried
from tasks.store import Store, digest

NIGHTS = 3  # that may be killed with one candidate under way


class Trials:
    """The trials of one recipe; `search` is `resolved(recipe)`. Each method raises WorldFailed where the storage does
    not answer."""

    def __init__(self, recipe: Recipe, search: Search, store: Store) -> None:
        self.recipe, self.search = recipe, search
        space = [vary.model_dump(mode="json") for vary in search.vary]
        self.study = f"{recipe.name}/{digest(space)[:12]}"
        self._file = store.root / "search" / f"{recipe.name}.db"
        self._opened: Any = None

    def take(self, night: str, alive: Collection[str], killed: Collection[str] = ()) -> list[Proposal]:
        """This night's candidates: first what nights that are no longer `alive` left, then new ones.

        A night that was `killed` counts against its candidates; one that the data gate or the world ended does not.
        Asking again for the same night gives the same. Nights ask one after another.
        """
        with self._alone() as storage:
            own: list[Tried] = []
            for left in self.all():
                if left.state != "running" or left.night in {*alive} - {night} or len(own) == self.search.candidates:
                    continue
                lost = left.nights + (left.night != night and left.night in killed)
                if why := self._given_up(left, lost):
                    self._end(storage, left.study, left.trial, None, why)
                elif left.values not in [one.values for one in own]:
                    own.append(self._adopt(storage, left, night, lost, f"candidate-{len(own) + 1}"))
            past = [
                Point(one.settings, one.outcome, one.state == "failed")
                for one in self.all()
                if one.state != "running" or one.night != night
            ]
            while len(own) < self.search.candidates:
                values = propose(self.recipe, self.search, past, [Point(one.values) for one in own])
                if values is None:
                    break
                own.append(self._add(storage, values, night, f"candidate-{len(own) + 1}"))
        return [
            Proposal(name=one.candidate, values=one.values, recipe=variant(self.recipe, one.values), trial=one.trial)
            for one in own
        ]

    def tell(self, proposal: Proposal, outcome: Outcome | None, reason: str | None = None) -> None:
        """How a candidate ended: what it came to, or why it failed. A second answer changes nothing."""
        assert proposal.trial is not None
        with self._answers() as storage:
            self._end(storage, self.study, proposal.trial, outcome, reason)

    def all(self) -> list[Tried]:
        """Every candidate of the recipe, of all its spaces, oldest first."""
        with self._answers() as storage:
            names = [study.study_name for study in storage.get_all_studies()]
            found = [
                _tried(name, trial)
                for name in names
                if name.startswith(f"{self.recipe.name}/")
                for trial in storage.get_all_trials(storage.get_study_id_from_name(name))
            ]
        return sorted(found, key=lambda one: one.at)

    def _given_up(self, left: Tried, lost: int) -> str | None:
        if left.study != self.study:
            return "its night ended before it was judged, and what may vary has changed since"
        if lost >= NIGHTS:
            return f"{lost} nights were killed before it was judged"
        return None

    def _adopt(self, storage: Any, left: Tried, night: str, lost: int, name: str) -> Tried:
        settings = self._settings(left.values)
        now = left.model_copy(update={"night": night, "nights": lost, "candidate": name, "settings": settings})
        trial_id = _trial_id(storage, left.study, left.trial)
        # The night comes last: what is not wholly taken over is taken over anew.
        for key in ("settings", "nights", "candidate", "night"):
            storage.set_trial_user_attr(trial_id, key, getattr(now, key))
        return now

    def _add(self, storage: Any, values: dict[str, Value], night: str, name: str) -> Tried:
        optuna = quiet_optuna()
        trial = optuna.create_trial(
            state=optuna.trial.TrialState.RUNNING,
            params=values,
            distributions=distributions(self.recipe, self.search),
            user_attrs={"settings": self._settings(values), "nights": 0, "candidate": name, "night": night},
        )
        made = storage.create_new_trial(storage.get_study_id_from_name(self.study), trial)
        return _tried(self.study, storage.get_trial(made))

    def _settings(self, values: dict[str, Value]) -> dict[str, Value]:
        made = variant(self.recipe, values)
        return {field: value_of(made, field) for field in may_vary(made)}

    def _end(self, storage: Any, study: str, number: int, outcome: Outcome | None, reason: str | None) -> None:
        from optuna.trial import TrialState

        trial_id = _trial_id(storage, study, number)
        if storage.get_trial(trial_id).state.is_finished():
            return
        value = score(self.recipe, outcome) if outcome else None
        if outcome is None or value is None:
            storage.set_trial_user_attr(trial_id, "reason", (reason or "a target was not measured")[:2000])
            storage.set_trial_state_values(trial_id, TrialState.FAIL)
            return
        storage.set_trial_user_attr(trial_id, "outcome", outcome.model_dump(mode="json"))
        storage.set_trial_state_values(trial_id, TrialState.COMPLETE, [value])

    @contextmanager
    def _alone(self) -> Iterator[Any]:
        """The storage, with today's study in it, for one night at a time."""
        with self._answers() as storage, self._locked():
            if self.study not in [study.study_name for study in storage.get_all_studies()]:
                storage.create_new_study([quiet_optuna().study.StudyDirection.MAXIMIZE], self.study)
            yield storage

    @contextmanager
    def _answers(self) -> Iterator[Any]:
        """The storage; what it raises where it does not answer becomes WorldFailed."""
        import sqlalchemy.exc

        optuna = quiet_optuna()
        try:
            if self._opened is None:
                # Two nights that make the tables at the same time would trip over each other.
                with self._locked():
                    self._opened = optuna.storages.RDBStorage(
                        self._url, engine_kwargs={} if self.search.storage else {"connect_args": {"timeout": 60}}
                    )
            yield self._opened
        except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError, OSError) as error:
            first_line = str(error.__cause__ or error).strip().partition("\n")[0][:300]
            raise WorldFailed(
                self.search.storage or str(self._file),
                f"the history of the search cannot be used ({first_line})",
                "Check search.storage and its password, or the store's disk; what is trained is kept.",
            ) from error

    @contextmanager
    def _locked(self) -> Iterator[None]:
        if self.search.storage is None:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{self._file}.lock"):
                yield
            return
        import sqlalchemy

        engine = sqlalchemy.create_engine(self._url, poolclass=sqlalchemy.NullPool)
        with engine.connect() as connection:
            # Until the connection ends, however this process does.
            connection.execute(sqlalchemy.text("SELECT pg_advisory_lock(hashtext('nightowl search'))"))
            yield

    @property
    def _url(self) -> str:
        if self.search.storage is None:
            return f"sqlite:///{self._file}"
        return self.search.storage.replace("postgresql://", "postgresql+psycopg://", 1)


def _trial_id(storage: Any, study: str, number: int) -> int:
    found: int = storage.get_trial_id_from_study_id_trial_number(storage.get_study_id_from_name(study), number)
    return found


def _tried(study: str, trial: Any) -> Tried:
    from optuna.trial import TrialState

    told = dict(trial.user_attrs)
    outcome = told.pop("outcome", None) if trial.state == TrialState.COMPLETE else None
    state = {TrialState.COMPLETE: "judged", TrialState.FAIL: "failed"}.get(trial.state, "running")
    fixed = {"study": study, "trial": trial.number, "state": state, "values": trial.params, "outcome": outcome}
    return Tried.model_validate({**told, **fixed, "at": trial.datetime_start.isoformat()})
