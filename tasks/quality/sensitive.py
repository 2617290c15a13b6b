r"""Secrets and personal data: where they stand in a text, whether a row holds any, and rows without them.

A detector is a cheap regular expression in Polars over all texts (its sign), and an exact look, in Python,
at the few texts that have the sign: check digits, phonenumbers' numbering plans, detect-secrets' plug-ins.
What documentation uses as an example (AWS's AKIA...EXAMPLE, numbers kept for fiction, test cards) is no find.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import orjson
import polars as pl

from tasks.conversations import canonical_json
from tasks.quality.turns import Turns
from tasks.recipe import Sensitive

Span = tuple[int, int]

EMAIL = r"\b[A-Za-z0-9][A-Za-z0-9._%+-]{0,63}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63})*\.[A-Za-z]{2,24}\b"
EMAIL_EXAMPLE = r"(?i)@(?:[a-z0-9-]+\.)*(?:example\.(?:com|org|net)|(?:test|example|invalid|localhost|local))\b"

SECRET = "|".join(
    (
        r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY(?: BLOCK)?-----",
        r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",
        r"\bgh[pousr]_[A-Za-z0-9]{36}\b|\bgithub_pat_[A-Za-z0-9_]{60,}",
        r"\bglpat-[A-Za-z0-9_-]{20,}",
        r"\bsk-(?:proj-|ant-|svcacct-)?[A-Za-z0-9_-]{32,}",
        r"\bxox[abeoprs]-[A-Za-z0-9-]{20,}",
        r"\bAIza[0-9A-Za-z_-]{35}\b",
        r"\bhf_[A-Za-z]{34}\b",
        r"\b[rs]k_live_[0-9A-Za-z]{20,}",
        r"\bnpm_[A-Za-z0-9]{36}\b|\bpypi-AgEIcHlwaS[A-Za-z0-9_-]{20,}",
    )
)
# One of these stands in whatever the patterns above or the plug-ins below can find. They are apart by how they begin:
# three passes for a few patterns each take half the time of one for all.
_SECRET_SIGNS = (
    r"PRIVATE KEY|PuTTY-User-Key|AKIA|ASIA|ABIA|ACCA|A3T[A-Z0-9]{17}|AccountKey=|GR1348941|AIza|"
    r"SG\.[A-Za-z0-9_-]{22}|eyJ[A-Za-z0-9]|:AA[A-Za-z0-9_-]{33}",
    r"sk-[A-Za-z0-9]|-us\d|hf_[A-Za-z]{34}|[rs]k_live_|npm_|_authToken|github_pat_",
    r"gh[pousr]_|gl(?:pat|dt|ft|soat|rt|imt|ptt|agent|oas|cbt)-|xox[abeoprs]-|hooks\.slack\.com|pypi-Ag|sq0csp-",
)
# A chat bot's token has no fixed part; looked for by itself, since a pattern without one is slow beside others.
_BOT_TOKEN_SIGN = r"[MNO][A-Za-z0-9_-]{23,25}\.[A-Za-z0-9_-]{6}\."
_KEY_BLOCK = re.compile(
    r"-----BEGIN ([A-Z ]*PRIVATE KEY(?: BLOCK)?)-----(?:[\s\S]*?-----END \1-----|[A-Za-z0-9+/=\s\\]*)"
)
_PLUGINS = {
    "aws": "AWSKeyDetector",
    "azure_storage_key": "AzureStorageKeyDetector",
    "discord": "DiscordBotTokenDetector",
    "github_token": "GitHubTokenDetector",
    "gitlab_token": "GitLabTokenDetector",
    "jwt": "JwtTokenDetector",
    "mailchimp": "MailchimpDetector",
    "npm": "NpmDetector",
    "openai": "OpenAIDetector",
    "pypi_token": "PypiTokenDetector",
    "sendgrid": "SendGridDetector",
    "slack": "SlackDetector",
    "square_oauth": "SquareOAuthDetector",
    "stripe": "StripeDetector",
    "telegram_token": "TelegramBotTokenDetector",
}
_REST = re.compile(r"[A-Za-z0-9_.=-]*[A-Za-z0-9_=-]")
_LONGEST_LINE = 20_000  # what the plug-ins' back-tracking patterns are given at once
# Numbers that card networks publish for tests.
_TEST_CARDS = {"4111111111111111", "4242424242424242", "5555555555554444", "378282246310005", "4012888888881881"}
_FICTION = re.compile(r"555\D{0,2}01\d\d$")  # kept for fiction in North America


@dataclass(frozen=True)
class Detector:
    """One sort of sensitive text.

    `signs`: regular expressions one of which is in any text that holds some (Polars' dialect, no look-around);
    `spans`: where it holds some, exactly, given the countries whose numbers may lack their prefix.
    """

    name: str
    label: str
    signs: tuple[str, ...]
    spans: Callable[[str, Sequence[str]], Iterable[Span]]


def found_in(text: str, detector: Detector, regions: Sequence[str] = ()) -> list[Span]:
    """Where a text holds what a detector looks for: (start, end), in order, none within another."""
    spans: list[Span] = []
    for start, end in sorted(detector.spans(text, regions)):
        if not spans or start >= spans[-1][1]:
            spans.append((start, end))
    return spans


def sensitive_flags(laid: Turns, sensitive: Sensitive) -> dict[str, pl.Series]:
    """Flags of the rules on secrets and personal data, in what is said and in declared tools.

    All are false where the recipe looks for none.
    """
    flags = {}
    # Sources declare the same tools over and over: each declaration is looked at once.
    declared = laid.rows.select(text="tools").drop_nulls().unique()
    for detector in DETECTORS:
        hits = pl.Series([], dtype=pl.UInt32)
        if getattr(sensitive, detector.name) is not None:
            there = _suspects(laid.pieces, detector, sensitive.phone_regions)
            declaring = _suspects(declared, detector, sensitive.phone_regions)["text"]
            within = laid.rows.filter(pl.col("tools").is_in(declaring.implode()))["n"]
            hits = pl.concat([there["n"], within]).unique()
        flags[detector.name] = laid.mark(hits)
    return flags


@dataclass(frozen=True)
class Redacted:
    """A conversation's messages and declared tools without what the detectors of these names found in them."""

    messages: list[dict[str, Any]]
    tools: str | None
    found: list[str]


def redact(rows: pl.DataFrame, sensitive: Sensitive, *, strings_only: bool = False) -> dict[int, Redacted]:
    """By position, the conversations that hold what is to be redacted, without it.

    Within a conversation the same text has the same placeholder, [EMAIL_1] and so on, also in calls' arguments and
    declared tools, where numbers and fields' names become strings. With `strings_only`, numbers, fields' names and
    declared tools stay, for the rule to find.
    """
    wanted = [detector for detector in DETECTORS if getattr(sensitive, detector.name) == "redact"]
    if not wanted:
        return {}
    pieces = Turns.of(rows).pieces
    tools = rows.select("tools").with_row_index("n").rename({"tools": "text"}).drop_nulls()
    declared = tools.select("text").unique()
    found: dict[int, list[Detector]] = {}
    for detector in wanted:
        there = [_suspects(pieces, detector, sensitive.phone_regions)["n"]]
        if not strings_only:
            declaring = _suspects(declared, detector, sensitive.phone_regions)["text"]
            there.append(tools.filter(pl.col("text").is_in(declaring.implode()))["n"])
        for n in pl.concat(there).unique(maintain_order=True):
            found.setdefault(n, []).append(detector)
    redacted = {}
    for n, detectors in found.items():
        writing = _Redaction(detectors, sensitive.phone_regions, strings_only)
        messages, tool_text = writing.messages(rows["messages"][n].to_list()), rows["tools"][n]
        without = tool_text if strings_only else writing.json(tool_text)
        redacted[n] = Redacted(messages, without, [detector.name for detector in detectors])
    return redacted


def _suspects(pieces: pl.DataFrame, detector: Detector, regions: Sequence[str]) -> pl.DataFrame:
    """The pieces (`text`) in which a detector finds something."""
    signed = pieces.filter(pl.any_horizontal(pl.col("text").str.contains(sign) for sign in detector.signs))
    return signed.filter(
        pl.Series([bool(found_in(text, detector, regions)) for text in signed["text"]], dtype=pl.Boolean)
    )


class _Redaction:
    """One conversation's placeholders, numbered as their texts are first seen."""

    def __init__(self, detectors: Sequence[Detector], regions: Sequence[str], strings_only: bool) -> None:
        self._detectors, self._regions, self._strings_only = detectors, regions, strings_only
        self._written: dict[str, dict[str, str]] = {detector.label: {} for detector in detectors}

    def messages(self, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        for message in filter(None, messages):
            for part in ("content", "thinking"):
                if message[part]:
                    message[part] = self.text(message[part])
            for call in filter(None, message["tool_calls"] or ()):
                call["arguments"] = self.json(call["arguments"])
        return messages

    def text(self, text: str) -> str:
        for detector in self._detectors:
            known, written, at = self._written[detector.label], [], 0
            for start, end in found_in(text, detector, self._regions):
                name = known.setdefault(" ".join(text[start:end].split()), f"[{detector.label}_{len(known) + 1}]")
                written += [text[at:start], name]
                at = end
            text = "".join([*written, text[at:]])
        return text

    def json(self, text: str | None) -> str | None:
        try:
            value = orjson.loads(text or "")
        except orjson.JSONDecodeError:
            return text and self.text(text)
        return canonical_json(self._part(value))

    def _part(self, value: Any) -> Any:
        if isinstance(value, dict):
            parts = [
                (name if self._strings_only else self.text(name), self._part(part)) for name, part in value.items()
            ]
            without = dict(parts)
            # Of two names that come out alike, one would be lost: then they stay.
            return without if len(without) == len(value) else dict(zip(value, (p for _, p in parts), strict=True))
        if isinstance(value, list):
            return [self._part(part) for part in value]
        if isinstance(value, str):
            return self.text(value)
        if self._strings_only:
            return value
        written = canonical_json(value)
        redacted = self.text(written)
        return value if redacted == written else redacted


def _emails(text: str, _: Sequence[str]) -> Iterator[Span]:
    for found in re.finditer(EMAIL, text, re.ASCII):
        if not re.search(EMAIL_EXAMPLE, found[0]):
            yield found.span()


def _secrets(text: str, _: Sequence[str]) -> Iterator[Span]:
    for found in _KEY_BLOCK.finditer(text):
        yield found.span()
    for found in re.finditer(SECRET, text):
        if not _is_example(found[0]):
            yield found.span()
    at = 0
    for line in text.split("\n"):
        if any(re.search(sign, line) for sign in (*_SECRET_SIGNS, _BOT_TOKEN_SIGN)):
            for start in range(0, len(line), _LONGEST_LINE):
                for value in _plugin_finds(line[start : start + _LONGEST_LINE]):
                    if (place := line.find(value, start)) >= 0 and not _is_example(value):
                        # A plug-in may name less than the whole token.
                        rest = _REST.match(line, place + len(value))
                        yield at + place, at + (rest.end() if rest else place + len(value))
        at += len(line) + 1


def _plugin_finds(line: str) -> Iterator[str]:
    for plugin in _plugins():
        yield from {value for value in plugin.analyze_string(line) if value}


@cache
def _plugins() -> tuple[Any, ...]:
    from importlib import import_module

    return tuple(
        getattr(import_module(f"detect_secrets.plugins.{module}"), name)() for module, name in _PLUGINS.items()
    )


def _is_example(value: str) -> bool:
    """Whether a token is one that documentation shows: xxxx, ...EXAMPLE, your-key-here."""
    if value.startswith("-----"):
        return False
    return len(set(value[-16:])) < 4 or bool(re.search(r"EXAMPLE|(?i:your|x{6}|placeholder)", value))


def _phones(text: str, regions: Sequence[str]) -> Iterator[Span]:
    import phonenumbers

    for region in (None, *regions):
        # Written without its prefix, a number has to be grouped as its country groups it: else any ten digits are one.
        leniency = phonenumbers.Leniency.VALID if region is None else phonenumbers.Leniency.STRICT_GROUPING
        for match in phonenumbers.PhoneNumberMatcher(text, region, leniency=leniency, max_tries=1000):
            # 4969 - 4071 is a difference, and 0.693147 the logarithm of 2.
            grouped = re.search(r"\d\D+\d", match.raw_string) and not re.search(
                r"\d [-–] \d|^\d+[.,]\d+$", match.raw_string
            )
            if (region is None or grouped) and not _FICTION.search(match.raw_string):
                yield match.start, match.end


_CARD = re.compile(r"(?<![\d.,-])(?:\d[ -]?){12,18}\d(?![\d.,]?\d)")
_CARD_GROUPS = re.compile(r"\d{13,19}|\d{4}([ -])\d{4}\1\d{4}\1\d{1,7}|\d{4}([ -])\d{6}\2\d{4,5}")


def _cards(text: str, _: Sequence[str]) -> Iterator[Span]:
    for found in _CARD.finditer(text):
        digits = re.sub(r"\D", "", found[0])
        if (
            _CARD_GROUPS.fullmatch(found[0])
            and re.match(r"4|5[1-5]|2[2-7]|3[47]|35|6", digits)
            and digits not in _TEST_CARDS
            and len(set(digits)) > 3
            and _luhn(digits)
        ):
            yield found.span()


def _luhn(digits: str) -> bool:
    """The check digit of ISO/IEC 7812-1, annex B."""
    total = sum(int(d) if i % 2 == 0 else sum(divmod(2 * int(d), 10)) for i, d in enumerate(reversed(digits)))
    return total % 10 == 0


_IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b")


def _ibans(text: str, _: Sequence[str]) -> Iterator[Span]:
    for found in _IBAN.finditer(text):
        code = found[0].replace(" ", "")
        turned = "".join(str(int(sign, 36)) for sign in code[4:] + code[:4])
        # ISO 13616: the remainder of the whole, its first four signs last, by 97 is 1.
        if 15 <= len(code) <= 34 and int(turned) % 97 == 1:
            yield found.span()


_SSN = re.compile(r"(?<![\d-])(?!000|666|9\d\d)\d{3}-(?!00)\d\d-(?!0000)\d{4}(?![\d-])")
_RESIDENT = re.compile(r"(?<!\d)[1-8]\d{5}(?:19|20)\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])\d{3}[\dXx](?!\d)")
_SSN_EXAMPLES = {"078-05-1120", "219-09-9999", "123-45-6789"}


def _national_ids(text: str, _: Sequence[str]) -> Iterator[Span]:
    for found in _SSN.finditer(text):
        if found[0] not in _SSN_EXAMPLES:
            yield found.span()
    for found in _RESIDENT.finditer(text):
        # GB 11643-1999: weights are powers of two modulo 11.
        total = sum(int(digit) * (2 ** (17 - i) % 11) for i, digit in enumerate(found[0][:17]))
        if "10X98765432"[total % 11] == found[0][17].upper():
            yield found.span()


DETECTORS = (
    Detector("secret", "SECRET", (*_SECRET_SIGNS, _BOT_TOKEN_SIGN), _secrets),
    Detector("email_address", "EMAIL", ("@",), _emails),
    Detector("payment_card", "CARD", (r"\d{4}[ -]?\d{4,6}[ -]?\d{4,5}",), _cards),
    Detector("bank_account", "ACCOUNT", (r"[A-Z]{2}\d{2} ?[A-Z0-9]{4} ?[A-Z0-9]{4}",), _ibans),
    Detector("national_id", "ID", (r"\d{3}-\d\d-\d{4}|[1-8]\d{5}(?:19|20)\d{9}",), _national_ids),
    Detector("phone_number", "PHONE", (r"[+＋(\d][ ().\d/-]{6,}\d",), _phones),
)
