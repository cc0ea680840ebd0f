"""The list of rows: each is a fault of service.md 6.3, how it is made here, and a function that makes it."""

import dataclasses
import os
import shutil
import typing


@dataclasses.dataclass
class Row:
    name: str      # the number in service.md 6.3, perhaps with a letter
    fault: str
    how: str
    body: typing.Callable
    fast: bool     # part of the fast subset
    needs: tuple   # programs and "root"


ROWS = []


class Skipped(Exception):
    """What the row needs is not on this machine."""


@dataclasses.dataclass
class Run:
    """What a row is told, and what it counts."""
    random: object
    fast: bool
    minutes: float = 0   # of a campaign; 0: by count
    kills: int = 0       # of a campaign
    runs: int = 0        # faults made
    notes: dict = dataclasses.field(default_factory=dict)

    def add(self, count=1):
        self.runs += count

    def note(self, key, count=1):
        self.notes[key] = self.notes.get(key, 0) + count


def row(name, fault, how, fast=False, needs=()):
    def register(body):
        ROWS.append(Row(name, fault, how, body, fast, needs))
        return body
    return register


def require(needs):
    for need in needs:
        if need == "root":
            if os.geteuid() != 0:
                raise Skipped("needs root")
        elif need.startswith("/"):
            if not os.path.exists(need):
                raise Skipped(f"{need} is missing")
        elif shutil.which(need) is None and not os.path.exists(f"/usr/sbin/{need}"):
            raise Skipped(f"{need} is not installed")
