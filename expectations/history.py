"""Checking tables against their suites, and the history of all nights as Great Expectations Data Docs.

The history is a Great Expectations project folder that nights add to, one at a time (a file lock), so
that its pages show how a source has changed. What a killed night left unreadable there is put beside
it and a new history begun: old pages are not worth a night.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

if TYPE_CHECKING:
    import pandas as pd

SITE = "local_site"
PAGES = Path("gx", "uncommitted", "data_docs", SITE)
RESULTS = Path("gx", "uncommitted", "validations")
KEPT = 90  # nights a suite; the index page lists them all and is written anew each night

log = logging.getLogger(__name__)


class CheckFailed(Exception):
    """Great Expectations could not check a table: nothing is known about the data."""


@dataclass(frozen=True)
class Table:
    """A frame and the suite it is checked against; the suite's name is the table's."""

    frame: pd.DataFrame
    suite: Any


@dataclass(frozen=True)
class Outcome:
    """What one expectation said. `column` is None for those on the whole table; `rows`: how many failed it."""

    table: str
    expectation: str
    column: str | None
    severity: str
    description: str
    success: bool
    rows: int


def check(tables: Sequence[Table], *, history: Path, night: str, pages: Path) -> list[Outcome]:
    """Check tables, add the night to the history, and copy its pages to `pages` (`<table>.html`).

    `night` names the run in the history. Raises CheckFailed when an expectation raised, was lost or
    could not be evaluated, and OSError when the disk refuses.
    """
    history.mkdir(parents=True, exist_ok=True)
    with FileLock(str(history / ".lock")), _quiet():
        try:
            return _check(tables, history, night, pages)
        except (CheckFailed, OSError):
            raise
        except Exception as error:  # whatever a half-written JSON or YAML file makes of it
            aside = history / f"unreadable-{time.strftime('%Y%m%dT%H%M%S')}-{os.getpid()}"
            log.warning("the history of data checks could not be used (%s); it is now at %s", error, aside)
            if (history / "gx").exists():
                (history / "gx").replace(aside)
            try:
                return _check(tables, history, night, pages)
            except OSError:
                raise
            except Exception as again:
                raise CheckFailed(f"Great Expectations raised {type(again).__name__}: {again}") from again


def _check(tables: Sequence[Table], history: Path, night: str, pages: Path) -> list[Outcome]:
    import great_expectations as gx
    from great_expectations.core.run_identifier import RunIdentifier

    context = _context(history)
    source = context.data_sources.add_or_update_pandas("nightowl")
    outcomes, keys = [], []
    for table in tables:
        name = table.suite.name
        expected = len(table.suite.expectations)
        suite = context.suites.add_or_update(table.suite)
        lost = expected - len(suite.expectations)
        batch = source.add_dataframe_asset(name).add_batch_definition_whole_dataframe("night")
        definition = context.validation_definitions.add_or_update(
            gx.ValidationDefinition(name=name, data=batch, suite=suite)
        )
        checkpoint = context.checkpoints.add_or_update(
            gx.Checkpoint(
                name=name,
                validation_definitions=[definition],
                result_format={"result_format": "BASIC", "partial_unexpected_count": 0},
            )
        )
        run = checkpoint.run(batch_parameters={"dataframe": table.frame}, run_id=RunIdentifier(run_name=night))
        ((key, result),) = run.run_results.items()
        if lost or len(result.results) != expected:
            raise CheckFailed(f"{name}: {expected} expectations were asked, {len(result.results)} were checked")
        outcomes += [_outcome(name, found) for found in result.results]
        keys.append(key)
    for table in tables:
        _prune(history, table.suite.name)
    context.build_data_docs(site_names=[SITE], resource_identifiers=keys)
    _copy_pages(history, keys, pages)
    return outcomes


def _context(history: Path) -> Any:
    # Both are read at import and before a context exists.
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
    import great_expectations as gx

    context = gx.get_context(mode="file", project_root_dir=history)
    context.variables.progress_bars = {"globally": False, "metric_calculations": False}
    view = {"module_name": "expectations.pages"}
    page = {"class_name": "DefaultSiteSectionBuilder", "view": {**view, "class_name": "OfflinePage"}}
    context.update_data_docs_site(
        SITE,
        {
            "class_name": "SiteBuilder",
            "show_how_to_buttons": False,
            "store_backend": {
                "class_name": "TupleFilesystemStoreBackend",
                "base_directory": str(PAGES.relative_to("gx")),
            },
            "site_index_builder": {
                "class_name": "DefaultSiteIndexBuilder",
                "view": {**view, "class_name": "OfflineIndex"},
            },
            "site_section_builders": {
                "expectations": {
                    **page,
                    "source_store_name": "expectations_store",
                    "renderer": {
                        "module_name": "great_expectations.render.renderer",
                        "class_name": "ExpectationSuitePageRenderer",
                    },
                },
                "validations": {
                    **page,
                    "source_store_name": "validation_results_store",
                    "renderer": {
                        "module_name": "great_expectations.render.renderer",
                        "class_name": "ValidationResultsPageRenderer",
                    },
                },
                "profiling": "None",
            },
        },
    )
    return context


def _outcome(table: str, found: Any) -> Outcome:
    config = found.expectation_config
    if raised := list(_raised(found.exception_info)):
        raise CheckFailed(f"{table}: {config.type} on {config.kwargs.get('column', 'the table')} raised: {raised[0]}")
    if found.success is None:
        raise CheckFailed(
            f"{table}: {config.type} on {config.kwargs.get('column', 'the table')} said neither yes nor no"
        )
    return Outcome(
        table=table,
        expectation=config.type,
        column=config.kwargs.get("column"),
        severity=str(getattr(config.severity, "value", config.severity)),
        description=config.description or "",
        success=bool(found.success),
        rows=int(found.result.get("unexpected_count", 0)),
    )


def _raised(info: Any) -> Iterator[str]:
    """Messages of exceptions; GX tells of them flat or by metric."""
    if isinstance(info, dict):
        if info.get("raised_exception"):
            yield str(info.get("exception_message"))
        for value in info.values():
            yield from _raised(value)


def _copy_pages(history: Path, keys: Sequence[Any], pages: Path) -> None:
    pages.mkdir(parents=True, exist_ok=True)
    for key in keys:
        suite = key.expectation_suite_identifier.name
        page = (history / PAGES / "validations").joinpath(*key.to_tuple()).with_suffix(".html")
        text = page.read_text(encoding="utf-8")
        # The copy stands alone: what linked into the history's site stays there.
        text = re.sub(r'<link[^>]*href="(?:\.\./)+[^"]*"[^>]*>', "", text)
        text = re.sub(r'<a\b[^>]*href="(?:\.\./)+[^"]*"[^>]*>(.*?)</a>', r"\1", text, flags=re.S)
        (pages / f"{suite}.html").write_text(text, encoding="utf-8")


def _prune(history: Path, suite: str) -> None:
    """Forget the oldest nights of a suite, page and result."""
    nights = sorted((history / RESULTS / suite).glob("*/*"), key=lambda path: path.name)
    for night in nights[:-KEPT]:
        shutil.rmtree(night, ignore_errors=True)
        shutil.rmtree(history / PAGES / "validations" / suite / night.parent.name / night.name, ignore_errors=True)


@contextmanager
def _quiet() -> Iterator[None]:
    """GX speaks through warnings and its logger; what matters comes back as outcomes."""
    logger = logging.getLogger("great_expectations")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
