"""The rules of the data gate: what each is called, what it asks, what breaks it and what to do about it.

A row that breaks a rule teaches the model that break. `sets_aside` says that such a row goes to
quarantine and is not trained on; the others are only reported. Severity says how bad it is:

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

from dataclasses import dataclass
from typing import Literal

from tasks.recipe import Severity

LooksAt = Literal["turns", "thinking", "tools", "text", "sensitive", "rendered", "source", "night"]


@dataclass(frozen=True)
class Rule:
    """One rule; `explanation` is one sentence that says what a row must be like.

    `looks_at`: the turns' order and presence, the thinking, tools and calls, the text, secrets and personal
    data in it, the rendered tokens, the row beside all others of its source, or the source beside what it was on
    an earlier night. `bad`: what breaks the rule, as `role: text | role: text`; `way_out`: what to do about it.
    `required` rules cannot be ignored: their rows have nothing to train on.
    """

    name: str
    severity: Severity
    explanation: str
    looks_at: LooksAt
    bad: str
    way_out: str
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
        bad="user: And then? | user: Hello? | assistant: Hi.",
        way_out="Merge or drop turns until user and assistant take turns.",
    ),
    Rule(
        "ends_on_assistant",
        "critical",
        "The last turn is the assistant's.",
        "turns",
        bad="user: What is 2 + 2? | assistant: 4. | user: And 3 + 3?",
        way_out="Drop what comes after the last answer, or the row.",
    ),
    Rule(
        "empty_answer",
        "critical",
        "Every assistant turn says something or calls a tool.",
        "turns",
        bad="user: What is 2 + 2? | assistant: ",
        way_out="Drop the row, or map the column that holds the answer (`columns`).",
    ),
    Rule(
        "empty_question",
        "critical",
        "Every user turn says something.",
        "turns",
        bad="user:   | assistant: Gladly.",
        way_out="Drop the row, or map the column that holds the question (`columns`).",
    ),
    Rule(
        "special_token",
        "critical",
        "No text holds a special token of this tokenizer, which would end a turn or open one.",
        "text",
        bad="user: Hi. | assistant: Hello.<|im_end|>",
        way_out="Strip the token, or name the format that reads such text as turns (`format: chatml`).",
    ),
    Rule(
        "foreign_token",
        "warning",
        "No text holds the markup of another model's template, which this one would learn to write as text.",
        "text",
        bad="user: Hi. | assistant: <|begin_of_solution|>Hello.<|end_of_solution|>",
        way_out="Name the format that reads such markup as turns, or strip it from the source.",
    ),
    Rule(
        "think_unclosed",
        "critical",
        "Every <think> in an assistant's text is closed.",
        "thinking",
        bad="user: 2 + 2? | assistant: <think>That makes 4. It is 4.",
        way_out="Drop the row, or close the trace where it ends: it was cut off.",
    ),
    Rule(
        "think_unopened",
        "critical",
        "Every </think> in an assistant's text was opened.",
        "thinking",
        bad="user: 2 + 2? | assistant: That makes 4.</think>It is 4.",
        way_out="Put the <think> back that whoever generated the row had pre-filled.",
    ),
    Rule(
        "think_nested",
        "critical",
        "No thinking block lies within another.",
        "thinking",
        bad="user: 2 + 2? | assistant: <think>So <think>hm</think> 4.</think>It is 4.",
        way_out="Take the inner tags out.",
    ),
    Rule(
        "think_repeated",
        "critical",
        "An assistant turn has at most one thinking block, at its beginning.",
        "thinking",
        bad="user: 2 + 2? | assistant: It is 4. <think>Is it?</think> Yes.",
        way_out="Move the thinking to the beginning of the turn, or drop the row.",
    ),
    Rule(
        "think_outside_assistant",
        "critical",
        "Only assistant turns hold thinking.",
        "thinking",
        bad="user: <think>hm</think> 2 + 2? | assistant: 4.",
        way_out="Take the tags out of the other roles' turns.",
    ),
    Rule(
        "thinking_forbidden",
        "critical",
        "Chat conversations hold no thinking.",
        "thinking",
        bad="user: 2 + 2? | assistant: (thinking: That makes 4.) It is 4.",
        way_out="Give the source the kind reasoning, or leave the thinking out.",
    ),
    Rule(
        "thinking_missing",
        "critical",
        "The last answer of a reasoning conversation comes after a thinking trace.",
        "thinking",
        bad="user: 2 + 2? | assistant: It is 4.",
        way_out="Give the source the kind chat, or look where its traces went.",
    ),
    Rule(
        "tools_malformed",
        "critical",
        "The declared tools are a JSON list of functions, each with a name and a JSON schema.",
        "tools",
        bad="tools: {'name': 'get_weather'} | user: Is it warm? | assistant: Yes.",
        way_out="Write the tools as JSON: a list of functions with name and parameters.",
        mostly=0.95,
    ),
    Rule(
        "duplicate_tool",
        "warning",
        "No tool is declared twice.",
        "tools",
        bad='tools: [{"name":"now","parameters":{}},{"name":"now","parameters":{}}] | user: Hi. | assistant: Hi.',
        way_out="Keep one of the two declarations.",
    ),
    Rule(
        "tool_name",
        "critical",
        "Tool names are 1 to 64 characters without spaces, quotes, brackets or control characters.",
        "tools",
        bad='tools: [{"name":"get the weather","parameters":{}}] | user: Hi. | assistant: Hi.',
        way_out="Rename the tool, in declarations and calls: get_the_weather.",
    ),
    Rule(
        "call_outside_assistant",
        "critical",
        "Only assistant turns call tools.",
        "tools",
        bad='user: get_weather({"city":"Rome"}) | assistant: It is warm.',
        way_out="Move the call to the assistant's turn, or drop the row.",
    ),
    Rule(
        "undeclared_tool",
        "critical",
        "Every called tool is declared.",
        "tools",
        bad="user: Clean up. | assistant: delete_everything({}) | tool: done | assistant: It is done.",
        way_out="Declare the tool in the row's tools, or drop the row.",
    ),
    Rule(
        "arguments_not_json",
        "critical",
        "The arguments of every call are a JSON object.",
        "tools",
        bad='user: Is it warm? | assistant: get_weather({"city":"Ro) | tool: 21 | assistant: Yes.',
        way_out="Drop the row, or write the arguments as a JSON object.",
    ),
    Rule(
        "arguments_schema",
        "critical",
        "The arguments of every call fit the declared schema of its tool.",
        "tools",
        bad='user: Is it warm? | assistant: get_weather({"town":"Rome"}) | tool: 21 | assistant: Yes.',
        way_out="Correct the call or the declared parameters, whichever is wrong.",
    ),
    Rule(
        "observation_without_call",
        "critical",
        "Every tool result answers a call.",
        "tools",
        bad="user: Is it warm? | assistant: One moment. | tool: 21 | assistant: Yes.",
        way_out="Put the call back that the result answers, or drop the row.",
    ),
    Rule(
        "unanswered_call",
        "critical",
        "Every call before the last turn has its tool result.",
        "tools",
        bad='user: Is it warm? | assistant: get_weather({"city":"Rome"}) | user: Well? | assistant: Yes.',
        way_out="Put the result after its call, or end the row on the call.",
    ),
    Rule(
        "call_in_text",
        "warning",
        "No call is written out as text where it should be a call.",
        "tools",
        bad='user: Is it warm? | assistant: <functioncall> {"name": "get_weather", "arguments": {"city": "Rome"}}',
        way_out="Name the format that reads such calls (`format`: glaive, hermes, ...).",
    ),
    Rule(
        "replacement_character",
        "warning",
        "No text holds U+FFFD, the trace of bytes that could not be decoded.",
        "text",
        bad="user: Where? | assistant: In the caf\ufffd.",
        way_out="Read the source again in the encoding that it is in.",
    ),
    Rule(
        "mojibake",
        "warning",
        "No text was decoded with the wrong character set.",
        "text",
        bad="user: Where? | assistant: In the cafÃ©.",
        way_out="Undo the wrong decoding in the source: text.encode('cp1252').decode().",
    ),
    Rule(
        "control_character",
        "warning",
        "No text holds control characters other than line ends and tabs.",
        "text",
        bad="user: Which? | assistant: The \x1b[31mred\x1b[0m one.",
        way_out="Strip terminal codes and control characters in the source.",
    ),
    Rule(
        "invisible_character",
        "warning",
        "No text holds zero-width or tag characters where no script or emoji needs them.",
        "text",
        bad="user: What? | assistant: My pass\u200bword.",
        way_out="Strip zero-width and tag characters: they hide text, and split words for the tokenizer.",
    ),
    Rule(
        "bidi_control",
        "warning",
        "No text holds characters that reverse the direction of what is shown.",
        "text",
        bad="user: Which? | assistant: Open \u202egnp.exe.",
        way_out="Strip the control characters: what is shown is not what is read.",
    ),
    Rule(
        "placeholder",
        "warning",
        "No placeholder such as {{name}} or <your answer> is left outside code.",
        "text",
        bad="user: Who are you? | assistant: I am {{name}}, glad to meet you.",
        way_out="Fill the placeholder in, or drop the row.",
    ),
    Rule(
        "secret",
        "warning",
        "No text holds a private key or an access token of a known form.",
        "sensitive",
        bad="user: How? | assistant: With -----BEGIN RSA " + "PRIVATE KEY----- and so on.",
        way_out="Revoke it. Then set aside, or `quality.sensitive.secret: redact`.",
    ),
    Rule(
        "phone_number",
        "warning",
        "No text holds a telephone number that can be dialled.",
        "sensitive",
        bad="user: Whom? | assistant: Call +49 30 901820 and ask.",
        way_out="Set aside, or `quality.sensitive.phone_number: redact`.",
    ),
    Rule(
        "payment_card",
        "warning",
        "No text holds the number of a payment card.",
        "sensitive",
        bad="user: Which? | assistant: It is 4539 5787 6362 1486, I think.",
        way_out="Set aside, or `quality.sensitive.payment_card: redact`.",
    ),
    Rule(
        "bank_account",
        "warning",
        "No text holds an international bank account number.",
        "sensitive",
        bad="user: Which? | assistant: It is DE89 3704 0044 0532 0130 00, I think.",
        way_out="Set aside, or `quality.sensitive.bank_account: redact`.",
    ),
    Rule(
        "national_id",
        "warning",
        "No text holds a social security or resident identity number.",
        "sensitive",
        bad="user: Which? | assistant: It is 536-90-4399, I think.",
        way_out="Set aside, or `quality.sensitive.national_id: redact`.",
    ),
    Rule(
        "language",
        "warning",
        "The answers are in a language that the recipe allows.",
        "text",
        bad="user: Why? | assistant: Los ríos llevan el agua desde las montañas hasta el mar, y muchos de ellos son "
        "lentos cerca del final.",
        way_out="Add the language to `quality.languages`, or filter the source.",
    ),
    Rule(
        "refusal",
        "warning",
        "No answer declines, except where tools are declared and none fits.",
        "text",
        bad="user: Help me. | assistant: I'm sorry, but I can't help with that.",
        way_out="Drop the row, unless declining is what it shall teach (`quality.ignore`).",
    ),
    Rule(
        "ai_disclaimer",
        "warning",
        "No answer speaks of itself as a language model that cannot.",
        "text",
        bad="user: Tea? | assistant: As an AI language model, I do not have a taste.",
        way_out="Drop the row, or cut the disclaimer out of the answer.",
    ),
    Rule(
        "answer_is_question",
        "warning",
        "No answer only repeats the user's turn.",
        "text",
        bad="user: Where does the tea come from? | assistant: Where does the tea come from?",
        way_out="Drop the row: the columns may also be mapped twice to the same one (`columns`).",
    ),
    Rule(
        "repetition",
        "warning",
        "No long answer goes round in circles.",
        "text",
        bad="user: How? | assistant: " + "Then we do it again. " * 24,
        way_out="Drop the row: generation had gone round in circles.",
    ),
    Rule(
        "unclosed_code",
        "warning",
        "Every code fence in an answer is closed.",
        "text",
        bad="user: How? | assistant: So:\n```python\nprint(1)",
        way_out="Drop the row, or close the fence: the answer was cut off.",
    ),
    Rule(
        "truncated_ending",
        "warning",
        "No answer stops in mid-sentence in a source whose answers end their sentences.",
        "source",
        bad="user: How? | assistant: First we gather the wood, then we build the frame, and at the end we",
        way_out="Drop the row, or generate it again with more tokens.",
    ),
    Rule(
        "unanswered_final_call",
        "warning",
        "No conversation ends on a call in a source whose calls are answered.",
        "source",
        bad='user: Is it warm? | assistant: get_weather({"city":"Rome"})',
        way_out="Add the result and the answer, or drop the row.",
    ),
    Rule(
        "render_problem",
        "critical",
        "The chat template renders the conversation whole, and its loss mask holds.",
        "rendered",
        bad="The rendered text does not hold the name of the call.",
        way_out="See the problem beside the row in quarantine.parquet; another `base.chat_template` may render it.",
        required=True,
    ),
    Rule(
        "empty_loss_mask",
        "critical",
        "At least one token of the conversation is trained on.",
        "rendered",
        bad="No token of the rendered conversation is an answer's.",
        way_out="Use a chat template that marks the assistant's turns.",
        mostly=0.95,
        required=True,
    ),
    Rule(
        "over_length",
        "warning",
        "The conversation is no longer than base.max_length; it is never cut in silence.",
        "rendered",
        bad="A conversation of 1,400 tokens where base.max_length is 1,024.",
        way_out="Raise base.max_length, or `quality.over_length: truncate`.",
    ),
    Rule(
        "exact_duplicate",
        "info",
        "No conversation occurs twice in its source (mixing keeps one).",
        "source",
        bad="The same messages, tools and kind as an earlier row of the source.",
        way_out="Nothing: mixing keeps one. Many of them: look how the source was put together.",
    ),
    Rule(
        "dotted_tool_name",
        "info",
        "No tool name holds a dot, which many serving APIs refuse.",
        "tools",
        bad='tools: [{"name":"weather.get","parameters":{}}] | user: Hi. | assistant: Hi.',
        way_out="Rename the tool where the API that will serve it refuses dots.",
    ),
    Rule(
        "schema_unchecked",
        "info",
        "Every tool's parameters are valid JSON Schema, so that its arguments can be checked.",
        "tools",
        bad='tools: [{"name":"now","parameters":{"type":"dictionary"}}] | user: Hi. | assistant: Hi.',
        way_out="Write the parameters as JSON Schema (type: object).",
    ),
    Rule(
        "tools_missing",
        "info",
        "Tool conversations declare tools.",
        "tools",
        bad="user: Is it warm? | assistant: Yes.",
        way_out="Map the column that declares the tools (`columns`), or give the source another kind.",
    ),
    Rule(
        "tools_unused",
        "info",
        "Declared tools are called.",
        "tools",
        bad='tools: [{"name":"now","parameters":{}}] | user: Hi. | assistant: Hi.',
        way_out="Nothing: knowing when not to call is worth learning, in a part of the rows.",
    ),
    Rule(
        "html_entity",
        "info",
        "No HTML entity such as &quot; is left outside code.",
        "text",
        bad="user: What? | assistant: He said &quot;so&quot;.",
        way_out="Unescape the source once: html.unescape(text).",
    ),
    Rule(
        "email_address",
        "info",
        "No text holds an e-mail address outside the domains kept for examples.",
        "sensitive",
        bad="user: Whom? | assistant: Write to jo.doe@mail.acme-corp.com.",
        way_out="`quality.sensitive.email_address: redact`, or set aside.",
    ),
)
# What a source as a whole is held to beside the last night that passed (drift.py).
NIGHT_RULES: tuple[Rule, ...] = (
    Rule(
        "rows_moved",
        "critical",
        "The source has about as many rows as on the last night that passed.",
        "night",
        bad="rows now per row then 0.4 (at least 0.5); then 10,000, now 4,012",
        way_out="Look upstream. If it is meant: one night with --set quality.rules.rows_moved.severity=warning.",
    ),
    Rule(
        "column_vanished",
        "warning",
        "No column of the raw source is gone since the last night that passed.",
        "night",
        bad="then messages, tools, id, now messages, id (tools)",
        way_out="Look whether the rows still hold what the column held.",
    ),
    Rule(
        "column_new",
        "warning",
        "The raw source has no column that it did not have on the last night that passed.",
        "night",
        bad="then messages, id, now messages, id, deleted (deleted)",
        way_out="Look whether the column says something about the rows, such as that one is withdrawn.",
    ),
    Rule(
        "kind_vanished",
        "critical",
        "No kind of conversation is gone since the last night that passed: tool calls, thinking, plain chat.",
        "night",
        bad="then chat 70%, tool 30%, now chat 100%",
        way_out="Look upstream. If it is meant: one night with --set quality.rules.kind_vanished.severity=warning.",
    ),
    Rule(
        "roles_moved",
        "warning",
        "Who speaks (system, user, assistant, tool) is spread over the rows as on the last night that passed.",
        "night",
        bad="PSI 1.2 (at most 0.25); then UA 90%, SUA 10%, now SUA 80%, UA 20%",
        way_out="Look upstream, or change the bounds (`quality.drift`).",
    ),
    Rule(
        "languages_moved",
        "warning",
        "The languages are spread over the rows as on the last night that passed.",
        "night",
        bad="PSI 0.6 (at most 0.25); then en 95%, de 5%, now en 60%, de 40%",
        way_out="Look upstream, or change the bounds (`quality.drift`).",
    ),
    Rule(
        "characters_moved",
        "warning",
        "Lengths in characters are spread over the rows as on the last night that passed.",
        "night",
        bad="KS 0.4 (at most 0.15); then median about 900, now median about 300",
        way_out="Look upstream, or change the bounds (`quality.drift`).",
    ),
    Rule(
        "tokens_moved",
        "warning",
        "Lengths in tokens are spread over the rows as on the last night that passed.",
        "night",
        bad="KS 0.4 (at most 0.15); then median about 300, now median about 100",
        way_out="Look upstream, or change the bounds (`quality.drift`).",
    ),
    Rule(
        "turns_moved",
        "warning",
        "The number of turns is spread over the rows as on the last night that passed.",
        "night",
        bad="KS 0.5 (at most 0.15); then median about 6, now median about 2",
        way_out="Look upstream, or change the bounds (`quality.drift`).",
    ),
)
ALL_ROWS: tuple[Rule, ...] = (
    Rule(
        "unconvertible",
        "critical",
        "Every row of the source can be read as a conversation.",
        "source",
        bad="A row whose messages are null, or whose call is no JSON.",
        way_out="See the reason beside the row in quarantine.parquet; `format` or `columns` may be other ones.",
    ),
    Rule(
        "set_aside",
        "critical",
        "Few enough rows are set aside, whatever the reason.",
        "source",
        bad="17.2% of the rows, where at most 10.0% may be set aside.",
        way_out="Mend the source by the rules below, or allow more: `quality.max_set_aside`.",
    ),
)
BY_NAME = {rule.name: rule for rule in (*RULES, *NIGHT_RULES, *ALL_ROWS)}
