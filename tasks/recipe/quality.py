"""What the data gate asks."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tasks.recipe.part import Part

Severity = Literal["critical", "warning", "info"]
Handling = Literal["report", "set aside", "redact"]


class RuleSetting(Part):
    """What a recipe changes about one rule of the data gate; null: as the rule itself has it."""

    severity: Severity | None = None
    """critical and warning set a row that breaks the rule aside, and critical may stop the night; info only reports."""
    mostly: float | None = Field(None, ge=0, le=1)
    """Share of a source's rows that must keep the rule; with fewer, a critical rule stops the night."""


class Sensitive(Part):
    """What is done about secrets and personal data: report them, set the row aside, or redact: write a placeholder
    such as [EMAIL_1] instead, the same for the same text throughout a conversation; null: not looked for."""

    secret: Handling | None = "set aside"
    """Private keys and access tokens."""
    email_address: Handling | None = "report"
    """E-mail addresses outside the domains kept for examples."""
    phone_number: Handling | None = None
    """Telephone numbers that can be dialled: with a country's prefix, or as the phone_regions write them."""
    payment_card: Handling | None = None
    """Numbers of payment cards, with a right check digit."""
    bank_account: Handling | None = None
    """International bank account numbers (IBAN), with right check digits."""
    national_id: Handling | None = None
    """Social security numbers of the USA and resident identity numbers of China."""
    phone_regions: tuple[Annotated[str, Field(pattern="^[A-Z]{2}$")], ...] = ()
    """Countries (ISO 3166, two capitals) whose numbers are found without their prefix as well."""


class Drift(Part):
    """How far a source may move from the last night that passed. Rules of their own names (rows_moved, column_vanished,
    tokens_moved, ...) say how bad it is, under quality.rules, and are left out under quality.ignore."""

    fewer_rows: float = Field(0.5, gt=0, le=1)
    """Largest share of that night's rows that may be gone."""
    more_rows: float | None = Field(None, gt=0)
    """Most rows that may have come, as a share of that night's; null: any number."""
    psi: float = Field(0.25, gt=0)
    """Largest population stability index, of lengths, roles and languages."""
    ks: float = Field(0.15, gt=0, le=1)
    """Largest Kolmogorov-Smirnov statistic of lengths: the difference of the shares of rows up to any one length."""
    significance: float = Field(0.001, gt=0, le=0.1)
    """How often chance alone may exceed a bound where rows are few: there it is raised that far."""


class Quality(Part):
    """What the data gate asks of the conversations."""

    min_rows: int = Field(1, ge=1)
    """Fewest rows that a source must yield."""
    max_set_aside: float = Field(0.1, ge=0, le=1)
    """Largest share of a source's rows that may be set aside before the gate stops the night."""
    ignore: tuple[str, ...] = ()
    """Rules that are not applied, by name."""
    rules: dict[str, RuleSetting] = Field({})
    """What is changed about rules, by name."""
    over_length: Literal["set aside", "truncate", "keep"] = "set aside"
    """Conversations longer than base.max_length: set aside; truncate: end after the last exchange that fits (set
    aside where none does); keep: trained on whole, whatever that takes."""
    languages: tuple[Annotated[str, Field(pattern="^[a-z]{2}$")], ...] | None = None
    """Languages (ISO 639-1, two letters) that conversations may be in; null: any, and none is looked for."""
    sensitive: Sensitive = Sensitive()
    """What is done about secrets and personal data."""
    drift: Drift = Drift()
    """How far a source may move from the last night that passed."""
