"""The row rules of the data gate: what each is called, what it asks, and what follows when it is broken.

Issue: a row that breaks a rule teaches the model that break. `sets_aside` says that such a row goes
to quarantine and is not trained on; the others are only reported. Severity says how bad it is:

- critical: the row cannot be trained on as meant (its structure, its tokens or its loss mask are wrong);
- warning: the row can be trained on and would teach something unwanted;
- info: worth knowing, set aside never.

A recipe may give any rule another severity or another `mostly` (`quality.rules`).

The night stops when the share of rows set aside, by whatever rule, is above the recipe's
`quality.max_set_aside`. `mostly` is for rules whose break in many rows means that source and
template do not belong together: with fewer than that share of the rows keeping such a rule the night
stops whatever the recipe allows.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace
from typing import Literal

from tasks.errors import BadInput
from tasks.recipe import Quality, RuleSetting, Severity

DEFAULT = Quality()
LooksAt = Literal["turns", "thinking", "tools", "text", "sensitive", "rendered", "source"]


@dataclass(frozen=True)
class Rule:
    """One row rule; `explanation` is one sentence that says what a row must be like.

    `looks_at`: the turns' order and presence, the thinking, tools and calls, the text, secrets and personal
    data in it, the rendered tokens, or the row beside all others of its source. `required` rules cannot
    be ignored: their rows have nothing to train on.
    """

    name: str
    severity: Severity
    explanation: str
    looks_at: LooksAt
    mostly: float | None = None
    required: bool = False

    @property
    def sets_aside(self) -> bool:
        """Whether a row that breaks the rule goes to quarantine."""
        return self.severity != "info"


RULES: tuple[Rule, ...] = (
    Rule(
        "turn_order",
        "critical",
        "Turns go system (at most one), user, assistant, with tool results only after an assistant's turn.",
        "turns",
    ),
    Rule("ends_on_assistant", "critical", "The last turn is the assistant's.", "turns"),
    Rule("empty_answer", "critical", "Every assistant turn says something or calls a tool.", "turns"),
    Rule("empty_question", "critical", "Every user turn says something.", "turns"),
    Rule(
        "special_token",
        "critical",
        "No text holds a special token of this tokenizer, which would end a turn or open one.",
        "text",
    ),
    Rule("think_unclosed", "critical", "Every <think> in an assistant's text is closed.", "thinking"),
    Rule("think_unopened", "critical", "Every </think> in an assistant's text was opened.", "thinking"),
    Rule("think_nested", "critical", "No thinking block lies within another.", "thinking"),
    Rule(
        "think_repeated", "critical", "An assistant turn has at most one thinking block, at its beginning.", "thinking"
    ),
    Rule("think_outside_assistant", "critical", "Only assistant turns hold thinking.", "thinking"),
    Rule("thinking_forbidden", "critical", "Chat conversations hold no thinking.", "thinking"),
    Rule(
        "thinking_missing",
        "critical",
        "The last answer of a reasoning conversation comes after a thinking trace.",
        "thinking",
    ),
    Rule(
        "tools_malformed",
        "critical",
        "The declared tools are a JSON list of functions, each with a name and a JSON schema.",
        "tools",
        mostly=0.95,
    ),
    Rule("duplicate_tool", "warning", "No tool is declared twice.", "tools"),
    Rule(
        "tool_name",
        "critical",
        "Tool names are 1 to 64 characters without spaces, quotes, brackets or control characters.",
        "tools",
    ),
    Rule("call_outside_assistant", "critical", "Only assistant turns call tools.", "tools"),
    Rule("undeclared_tool", "critical", "Every called tool is declared.", "tools"),
    Rule("arguments_not_json", "critical", "The arguments of every call are a JSON object.", "tools"),
    Rule("arguments_schema", "critical", "The arguments of every call fit the declared schema of its tool.", "tools"),
    Rule("observation_without_call", "critical", "Every tool result answers a call.", "tools"),
    Rule("unanswered_call", "critical", "Every call before the last turn has its tool result.", "tools"),
    Rule("call_in_text", "warning", "No call is written out as text where it should be a call.", "tools"),
    Rule(
        "replacement_character",
        "warning",
        "No text holds U+FFFD, the trace of bytes that could not be decoded.",
        "text",
    ),
    Rule("mojibake", "warning", "No text was decoded with the wrong character set.", "text"),
    Rule("control_character", "warning", "No text holds control characters other than line ends and tabs.", "text"),
    Rule(
        "invisible_character",
        "warning",
        "No text holds zero-width or tag characters where no script or emoji needs them.",
        "text",
    ),
    Rule("bidi_control", "warning", "No text holds characters that reverse the direction of what is shown.", "text"),
    Rule("placeholder", "warning", "No placeholder such as {{name}} or <your answer> is left outside code.", "text"),
    Rule("secret", "warning", "No text holds a private key or an access token of a known form.", "sensitive"),
    Rule("phone_number", "warning", "No text holds a telephone number that can be dialled.", "sensitive"),
    Rule("payment_card", "warning", "No text holds the number of a payment card.", "sensitive"),
    Rule("bank_account", "warning", "No text holds an international bank account number.", "sensitive"),
    Rule("national_id", "warning", "No text holds a social security or resident identity number.", "sensitive"),
    Rule("language", "warning", "The answers are in a language that the recipe allows.", "text"),
    Rule("refusal", "warning", "No answer declines, except where tools are declared and none fits.", "text"),
    Rule("ai_disclaimer", "warning", "No answer speaks of itself as a language model that cannot.", "text"),
    Rule("answer_is_question", "warning", "No answer only repeats the user's turn.", "text"),
    Rule("repetition", "warning", "No long answer goes round in circles.", "text"),
    Rule("unclosed_code", "warning", "Every code fence in an answer is closed.", "text"),
    Rule(
        "truncated_ending",
        "warning",
        "No answer stops in mid-sentence in a source whose answers end their sentences.",
        "source",
    ),
    Rule(
        "unanswered_final_call",
        "warning",
        "No conversation ends on a call in a source whose calls are answered.",
        "source",
    ),
    Rule(
        "render_problem",
        "critical",
        "The chat template renders the conversation whole, and its loss mask holds.",
        "rendered",
        required=True,
    ),
    Rule(
        "empty_loss_mask",
        "critical",
        "At least one token of the conversation is trained on.",
        "rendered",
        mostly=0.95,
        required=True,
    ),
    Rule(
        "over_length",
        "warning",
        "The conversation is no longer than base.max_length; it is never cut in silence.",
        "rendered",
    ),
    Rule("exact_duplicate", "info", "No conversation occurs twice in its source (mixing keeps one).", "source"),
    Rule("dotted_tool_name", "info", "No tool name holds a dot, which many serving APIs refuse.", "tools"),
    Rule(
        "schema_unchecked",
        "info",
        "Every tool's parameters are valid JSON Schema, so that its arguments can be checked.",
        "tools",
    ),
    Rule("tools_missing", "info", "Tool conversations declare tools.", "tools"),
    Rule("tools_unused", "info", "Declared tools are called.", "tools"),
    Rule("html_entity", "info", "No HTML entity such as &quot; is left outside code.", "text"),
    Rule(
        "email_address", "info", "No text holds an e-mail address outside the domains kept for examples.", "sensitive"
    ),
)
BY_NAME = {rule.name: rule for rule in RULES}


def applied(quality: Quality = DEFAULT) -> tuple[Rule, ...]:
    """The rules as a recipe has them, in the order in which they name a row's first reason.

    Left out are those that it ignores and those that look for what it does not ask for; severity and `mostly` are
    the recipe's where it states them. Raises BadInput for an unknown name, with the nearest known one, and for a
    rule whose rows cannot be trained on and so cannot be let through.
    """
    for name in sorted({*quality.ignore, *quality.rules}):
        field = "quality.ignore" if name in quality.ignore else "quality.rules"
        if name not in BY_NAME:
            near = difflib.get_close_matches(name, BY_NAME, n=1, cutoff=0.4)
            hint = f"Did you mean {near[0]!r}? " if near else ""
            raise BadInput(field, name, "is no rule", f"{hint}Rules: {', '.join(BY_NAME)}.")
        let_through = name in quality.ignore or quality.rules[name].severity == "info"
        if BY_NAME[name].required and let_through:
            raise BadInput(
                field, name, "cannot be let through: such rows have nothing to train on", "Leave it out there."
            )
    return tuple(
        _as_asked(rule, quality) for rule in RULES if rule.name not in quality.ignore and _asked(rule, quality)
    )


def _asked(rule: Rule, quality: Quality) -> bool:
    if rule.looks_at == "sensitive":
        return getattr(quality.sensitive, rule.name) is not None
    return rule.name != "language" or quality.languages is not None


def _as_asked(rule: Rule, quality: Quality) -> Rule:
    setting = quality.rules.get(rule.name, RuleSetting())
    severity = setting.severity or rule.severity
    if rule.looks_at == "sensitive" and setting.severity is None:
        severity = "info" if getattr(quality.sensitive, rule.name) == "report" else "warning"
    if rule.name == "over_length" and quality.over_length == "keep" and setting.severity is None:
        severity = "info"
    mostly = rule.mostly if setting.mostly is None else setting.mostly
    return replace(rule, severity=severity, mostly=mostly)
