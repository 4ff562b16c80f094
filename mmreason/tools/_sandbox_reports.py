"""What a program's process says of it, read by the host, which trusts none of it but the first line."""

from __future__ import annotations

import json
import secrets
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmreason.tools.sandbox import Job, Limits

_LINE = 4096
"""Most bytes of a report of ours but for the value: 300 characters of error, each escaped in at most 12."""
_SPARE = 64
"""Lines beside those of the checks: three are ours, the rest may be of a program that writes to any descriptor."""


class WallsError(OSError):
    """The walls around a program could not be put up; the program has not been run."""


class Reports:
    """The lines of one run, JSON objects: walls, how the program ended, then each check and the value.

    The program shares the pipe with the code that reports on it. So lines are bounded in number and length, count only
    with the token of their turn (the second is made known after the program has run), and only plain text of bounded
    length is taken out of them.
    """

    def __init__(self, job: Job, limits: Limits) -> None:
        self.job, self.output = job, limits.output_kb << 10
        self.tokens = {"ran": secrets.token_hex(16), "checks": secrets.token_hex(16)}
        self.lines_left = len(job.checks) + _SPARE
        self.bytes_left = _LINE * self.lines_left + (12 * self.output if job.result else 0)
        self.rest = bytearray()
        self.enclosed = False
        self.told: dict[str, str] | None = None
        self.checks: list[str | None] = ["not run"] * len(job.checks)
        self.value: str | None = None

    def take(self, data: bytes) -> list[dict[str, Any]] | None:
        """Take what has come in; returns the messages that the process is to get next, None where it says too much.

        Raises:
            WallsError: it could not enclose itself.
        """
        self.bytes_left -= len(data)
        self.lines_left -= data.count(b"\n")
        if self.bytes_left < 0 or self.lines_left < 0:
            return None
        self.rest += data
        if b"\n" not in data:
            return []
        *lines, self.rest = self.rest.split(b"\n")
        return [answer for line in lines if (answer := self._heed(_parsed(bytes(line))))]

    def _heed(self, report: dict[str, Any]) -> dict[str, Any] | None:
        """One report; the answer to it."""
        more = bool(self.job.checks or self.job.result)
        if not self.enclosed:  # the program has not been sent yet: this is our own code's word
            if report.get("walls") != "up":
                raise WallsError(f"the program could not be enclosed: {report.get('walls')}")
            self.enclosed = True
            return {"code": self.job.code, "more": more, "token": self.tokens["ran"]}
        if self.told is None:
            if report.get("token") != self.tokens["ran"]:
                return None
            self._tell(report)
            if report.get("status") != "ok" or not more:
                return None
            checks = {"token": self.tokens["checks"], "checks": self.job.checks, "result": self.job.result}
            return {**checks, "most": self.output}
        if report.get("token") == self.tokens["checks"]:
            number = report.get("check")
            if type(number) is int and 0 <= number < len(self.checks):
                failure = report.get("failure")
                self.checks[number] = None if failure is None else text(failure, 1000)
            elif "value" in report:
                self.value = text(report["value"], self.output)
            elif "status" in report:
                self._tell(report)
        return None

    def _tell(self, report: dict[str, Any]) -> None:
        self.told = {"status": text(report.get("status"), 20), "error": text(report.get("error"), 1000)}


def _parsed(line: bytes) -> dict[str, Any]:
    """The object that a line holds; an empty one for anything else."""
    try:
        report = json.loads(line)
    except (ValueError, RecursionError, MemoryError):  # brackets without end are the second
        return {}
    return report if isinstance(report, dict) else {}


def text(value: object, most: int) -> str:
    """At most `most` characters that can be encoded; "" for what is no text."""
    return value[:most].encode(errors="replace").decode() if isinstance(value, str) else ""
