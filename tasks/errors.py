"""The three ways a night can end badly, each with its exit code.

A message always names the field (or place), the value found there and the way out,
so that whoever reads it at seven in the morning can act without opening the code.
"""

from __future__ import annotations


class NightowlError(Exception):
    """Base of the errors that are shown to a person as they are, without a traceback."""

    exit_code = 3


class Refused(NightowlError):
    """The night said no: the data gate stopped it, or the candidate may not be promoted."""

    exit_code = 1


class BadInput(NightowlError):
    """A recipe, an option or a data file cannot be used as given.

    `field` is what to look at (a recipe path such as `sources.tools.share`, an option or a
    file), `value` what was found there, `problem` what is wrong with it and `way_out` what
    to do instead.
    """

    exit_code = 2

    def __init__(self, field: str, value: object, problem: str, way_out: str) -> None:
        super().__init__(f"{field}: {value!r} {problem}. {way_out}")
        self.field = field
        self.value = value


class WorldFailed(NightowlError):
    """A hub, a server, a disk or a process failed; the input may well be right."""

    exit_code = 3

    def __init__(self, what: str, problem: str, way_out: str) -> None:
        super().__init__(f"{what}: {problem}. {way_out}")


class Preempted(NightowlError):
    """This process was told to stop and did so in good order: the same command goes on from there."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h

    def __init__(self, what: str, problem: str) -> None:
        super().__init__(f"{what}: {problem}. Run the same command again to go on.")
