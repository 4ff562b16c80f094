"""argparse, with the nearest known name for one that it doesn't know."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable
from typing import Any, NoReturn

from mmreason._functions import did_you_mean


class CommandParser(argparse.ArgumentParser):
    """A parser that says what was meant by a mistyped command, choice or option. Its subparsers do so, too."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Knows all or stops, so that the subparser whose option it is names the nearest."""
        found, rest = super().parse_known_args(args, namespace)
        if rest:
            self.error(f"unrecognized arguments: {' '.join(rest)}.{self._nearest_option(rest)}")
        return found, rest

    def _nearest_option(self, words: Iterable[str]) -> str:
        options = [word.partition("=")[0] for word in words if word.startswith("--")]
        return did_you_mean(options[0], self._option_string_actions) if options else ""

    def error(self, message: str) -> NoReturn:
        """Usage, message and exit with status 2, as argparse's own."""
        choice = re.search(r"invalid choice: '(.*)' \(choose from (.*)\)", message)
        if choice is not None:
            message += "." + did_you_mean(choice[1], [name.strip(" '") for name in choice[2].split(",")])
        super().error(message)
