"""The model card: what an adapter was made of, how it was judged and what it may be used for, in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import yaml

from tasks.conversations import Conversations
from tasks.evaluation import Verdict
from tasks.mixture import TokenisedMixture
from tasks.recipe import Recipe
from tasks.registry.figures import SuiteRow, difference_shown, is_share, shown
from tasks.registry.licences import BASE_MODEL, licence_flag, licences
from tasks.registry.lineage import Snapshots, pinned, source_names
from tasks.registry.links import markdown_links, picture
from tasks.sources import BaseSnapshot
from tasks.training import Adapter

MIXTURE_PICTURE = "mixture.png"
_LONGEST_DESCRIPTION = 5000  # characters, MLflow's bound


def cell(text: object) -> str:
    """Text as one cell of a Markdown table."""
    return str(text).replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


def markdown_table(rows: Sequence[Mapping[str, object]]) -> str:
    """A Markdown table of rows with the same keys."""
    if not rows:
        return ""
    heads = list(rows[0])
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    lines += ["| " + " | ".join(cell(row[head]) for head in heads) + " |" for row in rows]
    return "\n".join(lines)


def score_table(rows: Sequence[SuiteRow]) -> list[dict[str, object]]:
    """One row a suite: role, each model's score, the paired difference with its interval, and the outcome."""
    table: list[dict[str, object]] = []
    for row in rows:
        entry: dict[str, object] = {"suite": row.name, "role": row.comparison.role if row.comparison else "–"}
        for role in ("base", "champion", "candidate"):
            entry[role] = shown(row.means[role].value, row.unit) if role in row.means else "–"
        if row.comparison:
            low, high = (difference_shown(x, row.unit) for x in (row.comparison.low, row.comparison.high))
            points = " points" if is_share(row.unit) else f" {row.unit}"
            entry["difference"] = difference_shown(row.comparison.difference, row.unit) + points
            entry["interval"] = f"{low} to {high}"
            entry["outcome"] = row.comparison.outcome
        else:
            entry |= {"difference": "–", "interval": "–", "outcome": "not compared"}
        entry["items"] = row.means["candidate"].items
        table.append(entry)
    return table


def model_card(
    recipe: Recipe,
    base: BaseSnapshot,
    adapter: Adapter,
    mixture: TokenisedMixture,
    snapshots: Snapshots,
    conversations: Sequence[Conversations],
    rows: Sequence[SuiteRow],
    verdict: Verdict,
    with_picture: bool = False,
) -> str:
    """The card of one adapter. Licences are carried along; those that are missing or non-commercial are flagged.

    `with_picture`: the mixture's picture lies beside it, as MIXTURE_PICTURE.
    """
    named = source_names(snapshots, conversations)
    licence_of = licences(recipe, base, named)
    gated = {entry.source: entry for entry in conversations}
    sources = []
    for name in named:
        part, gate = mixture.shares.get(name), gated.get(name)
        sources.append(
            {
                "source": name,
                "licence": _licence(licence_of[name]),
                "rows used": part.rows if part else 0,
                "set aside": sum(gate.set_aside.values()) if gate else "–",
                "share asked": shown(part.asked, "share") if part else "–",
                "reached": shown(part.reached, "share") if part else "–",
            }
        )
    training = recipe.training
    train = mixture.splits["train"]
    whole = training.method == "full"
    front = {
        "library_name": "transformers" if whole else "peft",
        "base_model": base.uri,
        "license": licence_of[BASE_MODEL] or "unknown",
        "tags": [*(() if whole else ("lora",)), "nightowl"],
    }
    against = "the champion" if verdict.champion else "the base model"
    began = f"{pinned(base.uri, base.revision)} ({_licence(licence_of[BASE_MODEL])})"
    parts = [
        "---\n" + yaml.safe_dump(front, sort_keys=False) + "---",
        f"# {recipe.registered_model}: adapter {adapter.short}",
        f"A whole model, all weights trained from {began}: it needs no base to run, and is under the base's licence."
        if whole
        else f"A LoRA adapter for {began}. It holds no base weights and works on that base only: the base's files are "
        "checked by sha256 as it is loaded.",
        "## Scores",
        f"Against {against}, paired by item, at {100 * recipe.gate.confidence:g} % confidence. Differences are signed "
        "so that positive is better. Greedy decoding; the candidate's own interval is of 95 %.",
        markdown_table(_with_intervals(rows)),
        f"**Verdict: {verdict.decision}.** " + " ".join(_sentence(reason) for reason in verdict.reasons),
        "## Data",
        f"{train.rows} conversations, {train.tokens} tokens, {train.supervised_tokens} of them supervised; shares are "
        f"of {mixture.measure.replace('_', ' ')}. "
        f"{mixture.splits['test'].rows} held out by prompt. Mixture `{mixture.short}`.",
        markdown_table(sources),
        "\n".join(f"- {name}: `{pinned(snapshot.uri, snapshot.revision)}`" for name, snapshot in named.items()),
        *([f"![What the mixture is made of]({MIXTURE_PICTURE})"] if with_picture else []),
        "## Method",
        f"{training.method} with {training.backend}: "
        + ("" if whole else f"rank {training.rank}, alpha {training.alpha}, ")
        + f"learning rate {training.learning_rate:g} ({training.schedule}), {adapter.steps} steps of "
        f"{training.batch_size} conversations, seed {training.seed}; loss {adapter.loss:.3f}"
        + (f", on the validation split {adapter.validation_loss:.3f}" if adapter.validation_loss is not None else "")
        + f" nats per supervised token; {adapter.seconds:.0f} s on {adapter.device}.",
        "## Limits",
        "Judged on held-out conversations of the sources above and nothing else; conversations were at most "
        f"{recipe.base.max_length} tokens long. What the base gets wrong outside these tasks, it still gets wrong.",
        *_flags(licence_of),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def version_page(card: str, links: Mapping[str, str], run: str) -> str:
    """The card as the description of a version in MLflow: links and the lineage graph first, pictures of the run."""
    # The front matter is for hubs; MLflow would show it as text.
    text = card.partition("\n---\n")[2].lstrip() if card.startswith("---\n") else card
    text = text.replace(f"]({MIXTURE_PICTURE})", f"]({picture(run, MIXTURE_PICTURE)})")
    title, _, rest = text.partition("\n\n")
    head = f"{title}\n\n{markdown_links(links)}\n\n![Lineage]({picture(run, 'lineage.svg')})\n\n"
    if len(head) + len(rest) > _LONGEST_DESCRIPTION:
        tail = "\n\n… in full: README.md of the adapter."
        rest = rest[: max(0, _LONGEST_DESCRIPTION - len(head) - len(tail))].rpartition("\n")[0] + tail
    return (head + rest)[:_LONGEST_DESCRIPTION]


def _with_intervals(rows: Sequence[SuiteRow]) -> list[dict[str, object]]:
    """The table of scores, the candidate's with its 95 % interval."""
    table = score_table(rows)
    for row, entry in zip(rows, table, strict=True):
        low, high = (
            shown(x, row.unit).removesuffix(" %") for x in (row.means["candidate"].low, row.means["candidate"].high)
        )
        entry["candidate"] = f"{entry['candidate']} ({low} to {high})"
    return table


def _licence(licence: str | None) -> str:
    flag = licence_flag(licence)
    return f"{licence or 'licence'} ⚠ {flag}" if flag else str(licence)


def _flags(licence_of: Mapping[str, str | None]) -> list[str]:
    flagged = [f"{name} ({licence_flag(licence)})" for name, licence in licence_of.items() if licence_flag(licence)]
    if not flagged:
        return []
    return [f"⚠ Licences to look at before this adapter is used or passed on: {', '.join(flagged)}."]


def _sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else text + "."
