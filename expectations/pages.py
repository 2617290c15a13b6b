"""Data Docs that open offline: Great Expectations' own pages, with what they fetch from elsewhere taken out.

GX's pages load Bootstrap, jQuery, Vega and Font Awesome from content networks. What they need of them
to be read is a layout, a few icons, and two small actions, which stand here instead. Great
Expectations loads this module by name (see history.py), so it alone imports GX at its top.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from great_expectations.render.view import DefaultJinjaIndexPageView, DefaultJinjaPageView  # noqa: TID253

# Elements that fetch something, and inline scripts written for jQuery.
_FETCHES = re.compile(
    r"<script\b[^>]*>.*?</script>|<link\b[^>]*href=\"https?://[^>]*>|<img\b[^>]*src=\"https?://[^>]*>|<footer\b.*?</footer>",
    re.S | re.I,
)
_EMPTY_TABLE = re.compile(r"<div[^>]*-toolbar\"[^>]*>.*?</div>\s*<table\b[^>]*>\s*</table>", re.S)
_URL = re.compile(r"url\(['\"]?https?://[^)]*\)", re.I)

STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; --link: #2563eb; }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 0; padding: 0 1.5rem 3rem; }
nav.navbar { position: static; height: auto !important; padding: .8rem 0; margin-bottom: 1rem; }
nav.navbar { border-bottom: 1px solid var(--line); }
nav ol, nav ul { list-style: none; margin: 0; padding: 0; }
nav.navbar li { display: inline; } nav.navbar ol li + li::before { content: " / "; opacity: .5; }
.nav-item + .nav-item::before { content: "" !important; }
a { color: var(--link); text-decoration: none; } a:hover { text-decoration: underline; }
.container-fluid > .row, .container > .row { display: flex; gap: 1.5rem; align-items: flex-start; }
.container { padding-top: 0; }
[class*="navigation-sidebar"], .col-lg-2, .col-md-2 { flex: 0 0 15rem; }
.col-md-10, .col-lg-10, .col-md-8, .col-lg-8 { flex: 1 1 auto; min-width: 0; }
.ge-navigation-sidebar-link { display: block; padding: .1rem 0; font-size: 13px; }
.card, .border { border: 1px solid var(--line); border-radius: 6px; margin-bottom: 1rem; }
.card-header { background: var(--soft); padding: .4rem .8rem; } .card-body { padding: .4rem .8rem; }
.alert { padding: .5rem .8rem; background: var(--soft); border-radius: 6px; margin: .3rem 0; }
h1, h2, h3, h4, h5, h6 { margin: .6rem 0 .3rem; line-height: 1.2; }
table { border-collapse: collapse; width: 100%; margin: .3rem 0 .8rem; }
th, td { border-bottom: 1px solid var(--line); padding: .35rem .6rem; text-align: left; vertical-align: top; }
td { overflow-wrap: anywhere; } th { white-space: nowrap; }
th { font-weight: 600; }
td:nth-child(2):not(:last-child) { min-width: 14rem; } #navigation { position: static; }
.collapse { display: none; } .collapse:target { display: block; } .badge { font-weight: 600; }
.text-success { color: #15803d; } .text-danger { color: #dc2626; } .text-warning { color: #b45309; }
.fas::before { font-style: normal; font-weight: 700; }
.fa-check-circle::before { content: "\\2713"; } .fa-times::before { content: "\\2717"; }
.fa-exclamation-triangle::before, .fa-exclamation-circle::before { content: "!"; }
.fa-info-circle::before { content: "i"; }
.modal, #walkthroughModal, .fa-question-circle, .cooltip .top { display: none; }
body.failed-only [class*="hide-succeeded"] { display: none; }
"""
SCRIPT = """
function showAllValidations() { document.body.classList.remove("failed-only"); }
function hideSucceededValidations() { document.body.classList.add("failed-only"); }
"""


def offline(page: str) -> str:
    """A Data Docs page that fetches nothing from elsewhere."""
    page = _URL.sub("none", _FETCHES.sub("", page))
    return page.replace("</head>", f"<style>{STYLE}</style>\n<script>{SCRIPT}</script>\n</head>", 1)


class OfflinePage(DefaultJinjaPageView):
    """A suite's or a night's page."""

    def render(self, document: Any, template: Any = None, **kwargs: Any) -> str:
        return offline(super().render(document, template, **kwargs))


class OfflineIndex(DefaultJinjaIndexPageView):
    """The list of nights, newest first: a plain table, where GX's page has a script fill one in."""

    def render(self, document: Any, template: Any = None, **kwargs: Any) -> str:
        page = super().render(document, template, **kwargs)
        nights = sorted(_nights(document.to_json_dict()), key=lambda night: night["_run_time_sort"], reverse=True)
        return offline(_EMPTY_TABLE.sub(lambda _: _table(nights), page, count=1))


def _nights(part: Any) -> Iterator[dict[str, Any]]:
    if isinstance(part, dict):
        yield from part.get("table_data", [])
    for below in part.values() if isinstance(part, dict) else part if isinstance(part, list) else ():
        yield from _nights(below)


def _table(nights: Sequence[Mapping[str, Any]]) -> str:
    lines = []
    for night in nights:
        success = night["_validation_success_text"] == "Success"
        icon = f'<i class="fas {"fa-check-circle text-success" if success else "fa-times text-danger"}"></i>'
        link = f'<a href="{escape(night["_table_row_link_path"])}">{escape(str(night["asset_name"]))}</a>'
        cells = (icon, escape(str(night["run_time"])), escape(str(night["run_name"])), link)
        lines.append("".join(f"<td>{cell}</td>" for cell in cells))
    head = "<th></th><th>Time</th><th>Night</th><th>Table</th>"
    return f"<table><tr>{head}</tr>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"
