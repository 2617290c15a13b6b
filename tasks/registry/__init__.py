"""Registry: adapters, their lineage and the champion, in MLflow."""

from tasks.registry.bundle import base_reference, pack
from tasks.registry.card import markdown_table, model_card, score_table
from tasks.registry.figures import SuiteRow, by_role, items_of, score_metrics, shown, suite_rows
from tasks.registry.forward import Holders, containing_row, containing_source
from tasks.registry.journal import Decision, alias_version, ensure_model, move, moves
from tasks.registry.licences import licence_flag, licences, require_licences
from tasks.registry.lineage import (
    Snapshots,
    code_tags,
    code_version,
    compact,
    mixture_tags,
    pinned,
    source_names,
    source_tags,
)
from tasks.registry.night import Night, Run, nights, training_run
from tasks.registry.openlineage import tell_version
from tasks.registry.page import Rival, Story, graph, page
from tasks.registry.plots import search_plot
from tasks.registry.record import Record, libraries, make_record, read_record
from tasks.registry.retention import remove, roots, sort_out_versions
from tasks.registry.schema import BASE, Candidate, Champion, Move, NightOutcome, NightRecord, Report, Version
from tasks.registry.tracking import answers, client, site, tracking_uri
from tasks.registry.versions import (
    candidates,
    champion,
    create,
    download_adapter,
    find,
    get,
    lineage_of,
    log_model,
    log_scores,
    named,
)
from tasks.registry.webhook import post, signature

__all__ = [
    "BASE",
    "Candidate",
    "Champion",
    "Decision",
    "Holders",
    "Move",
    "Night",
    "NightOutcome",
    "NightRecord",
    "Record",
    "Report",
    "Rival",
    "Run",
    "Snapshots",
    "Story",
    "SuiteRow",
    "Version",
    "alias_version",
    "answers",
    "base_reference",
    "by_role",
    "candidates",
    "champion",
    "client",
    "code_tags",
    "code_version",
    "compact",
    "containing_row",
    "containing_source",
    "create",
    "download_adapter",
    "ensure_model",
    "find",
    "get",
    "graph",
    "items_of",
    "libraries",
    "licence_flag",
    "licences",
    "lineage_of",
    "log_model",
    "log_scores",
    "make_record",
    "markdown_table",
    "mixture_tags",
    "model_card",
    "move",
    "moves",
    "named",
    "nights",
    "pack",
    "page",
    "pinned",
    "post",
    "read_record",
    "remove",
    "require_licences",
    "roots",
    "score_metrics",
    "score_table",
    "search_plot",
    "shown",
    "signature",
    "site",
    "sort_out_versions",
    "source_names",
    "source_tags",
    "suite_rows",
    "tell_version",
    "tracking_uri",
    "training_run",
]
