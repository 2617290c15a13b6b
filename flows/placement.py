"""Where a night's stages run: in the night's own process, or on the data and gpu work pools.

A stage whose outputs are all in the store already is looked up in the night's process wherever its work would be done:
a run on a pool takes seconds to begin, and a night in which nothing moved is nothing but such stages.

On a pool, a stage is a flow run of its own, asked for under an idempotency key: asking twice is asking once. A
stage whose process is gone is asked for again under the next key, and its work goes on from what the store and its
checkpoints hold. Manifests travel as JSON and are validated into their models at both ends.
"""

from __future__ import annotations

import inspect
import re
import time
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, get_type_hints

import httpx
from prefect import Flow
from prefect.client.schemas import FlowRun
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.runtime import flow_run
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
from pydantic import BaseModel, TypeAdapter

from flows.screen import log
from tasks.errors import BadInput, NightowlError, Refused, WorldFailed
from tasks.recipe import Recipe

P = ParamSpec("P")
R = TypeVar("R")

POOLS = {"train-adapter": "gpu", "evaluate": "gpu"}
"""The pool of a stage, which is also its deployment's name; the others' is data."""
CRASHES = 4
"""How often a stage whose process died is started again."""
SILENCE_SECONDS = 600
"""How long the Prefect server may be out of reach before a night gives up waiting for a stage."""
_RAISED = re.compile(r"exception: *(?:\w+\.)*(?P<kind>\w+)(?:: )?(?P<message>.*)", re.DOTALL)


def placed(
    recipe: Recipe, flow: Flow[P, R], candidate: str = "", there: Callable[[], bool] = lambda: False
) -> Callable[P, R]:
    """A stage's flow as a function that runs it where the recipe's placement says.

    `candidate`: whose stage it is, where a night has that stage once a candidate; `there`: whether the store has all
    that the stage would make, asked before a run on a pool. What cannot be told is not there.
    It raises what the stage raises; BadInput where the stage is not deployed, WorldFailed where it is cancelled or
    its process dies more than CRASHES times.
    """
    if recipe.placement == "here":
        return flow  # where looking first would be the same work twice
    if _known(there):
        return _looked_up(flow)
    deployment = f"{flow.name}/{POOLS.get(flow.name, 'data')}"
    stage = f"{flow.name}-{candidate}" if candidate else flow.name

    def on_its_pool(*args: P.args, **kwargs: P.kwargs) -> R:
        given = inspect.signature(flow.fn).bind(*args, **kwargs).arguments
        plain = {name: _plain(value) for name, value in given.items()}
        for attempt in range(CRASHES + 1):
            if attempt:
                log.warning("%s: its process is gone; starting it again", stage)
            run = _finished(deployment, plain, f"{flow_run.id}-{stage}-{attempt}", _size(recipe, flow.name))
            if run.state and not run.state.is_crashed():
                break
        returned: Any = get_type_hints(flow.fn)["return"]
        made: R = TypeAdapter(returned).validate_python(_result(run, flow.name))
        return made

    return on_its_pool


def _looked_up(flow: Flow[P, R]) -> Callable[P, R]:
    """A stage that is over in a moment, without signs of life: the thread that gives them ends on whole seconds, and
    Prefect waits for it."""

    def here(*args: P.args, **kwargs: P.kwargs) -> R:
        with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
            return flow(*args, **kwargs)

    return here


def _known(there: Callable[[], bool]) -> bool:
    try:
        return there()
    except (NightowlError, OSError):
        return False  # the stage itself says what is wrong


def _size(recipe: Recipe, stage: str) -> dict[str, Any] | None:
    """How much of a cluster a stage takes (infra/kubernetes/gpu-pool.json); None where one GPU will do."""
    training = recipe.training
    if stage != "train-adapter" or training.processes * training.nodes == 1:
        return None
    return {"nodes": training.nodes, "gpus": training.processes}


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        # What is not given keeps its defaults there as well, and is known as such.
        return value.model_dump(mode="json", exclude_unset=isinstance(value, Recipe))
    return TypeAdapter(Any).dump_python(value, mode="json")


def _finished(deployment: str, parameters: dict[str, Any], key: str, size: dict[str, Any] | None) -> FlowRun:
    """The run of a deployment under a key, when it has ended. `size`: variables of its job."""
    heard = time.monotonic()
    while True:
        asked = time.monotonic()
        try:
            run: Any = run_deployment(
                deployment,
                parameters=parameters,
                timeout=None,
                poll_interval=2,
                idempotency_key=key,
                job_variables=size,
            )
            return run
        except ObjectNotFound as error:
            way_out = "`nightowl up` and `nightowl deploy` deploy it; placement: here needs no deployment."
            raise BadInput("placement", "pools", f"needs the deployment {deployment}", way_out) from error
        except httpx.TransportError as error:
            if time.monotonic() - asked > SILENCE_SECONDS:
                heard = time.monotonic()  # A call that waited so long was answered as long as it waited.
            if time.monotonic() - heard > SILENCE_SECONDS:
                raise WorldFailed("Prefect", f"does not answer ({error})", "What is finished is kept.") from error
            time.sleep(2)


def _result(run: FlowRun, name: str) -> Any:
    assert run.state
    if run.state.is_completed():
        return run.state.result()
    if run.state.is_failed() and (raised := _RAISED.search(run.state.message or "")):
        raise _foreseen(raised["kind"], raised["message"].strip())
    ended = "died again and again" if run.state.is_crashed() else f"ended as {run.state.name}"
    raise WorldFailed(name, ended, f"Its log is in Prefect, flow run {run.name}; the next night goes on from there.")


def _foreseen(kind: str, message: str) -> NightowlError:
    """The error that a stage raised, with its message as it was."""
    error: NightowlError
    if kind == "Refused":
        error = Refused()
    elif kind == "BadInput":
        error = BadInput("", None, "", "")
    else:
        error, message = WorldFailed("", "", ""), message if kind == "WorldFailed" else f"{kind}: {message}"
    error.args = (message,)
    return error
