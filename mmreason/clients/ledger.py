"""The ledger: every reply that was paid for, and every dollar that is spent, reserved or in doubt, in one SQLite file.

A request is *reserved* at the most it can cost before it is sent, and *committed* with its reply in one transaction:

    reserve ── sent ──┬── commit   the reply is kept; the reservation becomes its real cost
                      ├── release  the server has certainly charged nothing (429, 400, no connection)
                      ├── waste    charged, and the reply was unusable (schema, log-probs, content filter)
                      └── doubt    may have been charged (time-out, cut connection, killed process)

What is spent, wasted, in doubt and reserved never adds up to more than the budget. A doubtful request counts as spent
at its upper bound until the user says what the provider's bill has for it (`settle_doubtful`).

Several processes may share a file on one machine (WAL needs shared memory, so no network file system). A living process
holds a lock on a small file beside the ledger; the reservations of one that ended without closing become doubtful. A
committed reply outlives `kill -9`. A power cut may lose the last moments (`synchronous=NORMAL`) but not the file.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import logging
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mmreason.clients._ledger_file import LedgerFile
from mmreason.clients.prices import format_dollars, to_dollars, to_pico
from mmreason.clients.types import EndpointError, Reply, TokenLogprob
from mmreason.types import ConfigError

Busy = Literal["elsewhere", "no_room"]
"""elsewhere: the same request is in flight already. no_room: it fits the budget once some of those in flight end."""

log = logging.getLogger("mmreason.clients")


@dataclass(frozen=True, slots=True)
class Reservation:
    """A request that may be sent now. amount: the most it can cost, picodollars; None without a price."""

    id: int
    key: str
    endpoint: str
    amount: int | None


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch under way.

    Attributes:
        name: ours, which the server keeps in the batch's metadata.
        server_id: the server's; None where it is not known yet.
        is_orphan: the process that was submitting it is gone.
    """

    name: str
    server_id: str | None
    is_orphan: bool


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the account. requests: how many, `unpriced` of them without a price. amount: picodollars."""

    requests: int
    amount: int
    unpriced: int

    @property
    def dollars(self) -> float:
        return to_dollars(self.amount)


@dataclass(frozen=True, slots=True)
class Account:
    """Where the money went: replies paid for, unusable replies, requests in flight, requests in doubt."""

    paid: Entry
    wasted: Entry
    in_flight: Entry
    doubtful: Entry

    @property
    def spent(self) -> int:
        """Picodollars that are gone, or must be taken for gone."""
        return self.paid.amount + self.wasted.amount + self.doubtful.amount


class Ledger:
    """The ledger in a file.

    Args:
        path: made if it isn't there.
        max_budget: US dollars that all requests of this ledger, of all runs together, may cost; None for no limit.

    Raises:
        DataError: the file is damaged, of another program, or of a newer version.
        ConfigError: a budget below 0, or a place where no file can be.
    """

    def __init__(self, path: str | os.PathLike[str], *, max_budget: float | None = None) -> None:
        if max_budget is not None and not max_budget >= 0:
            raise ConfigError(f"max_budget must be an amount of US dollars from 0 up, not {max_budget}")
        self.path = Path(path)
        self.budget = None if max_budget is None else to_pico(max_budget)
        self._file = LedgerFile(self.path)
        self._db = self._file.db
        try:
            self._owner, self._owner_lock = self._register()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file. What is still in flight becomes doubtful."""
        if self._owner_lock < 0:
            return
        with self._file.transaction():
            self._bury(self._owner)
        os.close(self._owner_lock)
        self._owner_lock = -1
        self._file.close()

    # ----------------------------------------------------------------------------------------------------------------
    # One request

    def find(self, key: str) -> Reply | None:
        """The reply to a request, if it was paid for."""
        with self._file.reading():
            row = self._db.execute("SELECT reply, endpoint, cost FROM replies WHERE key = ?", (key,)).fetchone()
        return None if row is None else _load_reply(*row)

    def reserve(self, key: str, *, endpoint: str, amount: int | None) -> Reply | Reservation | Busy:
        """Claim a request and its money before it is sent.

        Args:
            key: of the request. endpoint: its configured name.
            amount: the most it can cost, picodollars.

        Returns:
            The reply where there is one already, the reservation, or why to try again a little later.

        Raises:
            EndpointError: kind "budget": it doesn't fit, whatever those in flight will cost; kind "bad_request": it is
                part of a batch under way.
        """
        with self._file.transaction():
            reply = self.find(key)
            if reply is not None:
                return reply
            if self._is_in_flight(key):
                return "elsewhere"
            if not self._has_room(amount):
                return "no_room"
            return self._insert(key, endpoint, amount, owner=self._owner, batch=None)

    def commit(self, reservation: Reservation, reply: Reply, cost: int | None) -> None:
        """Keep the reply and turn its reservation into what it cost (picodollars)."""
        with self._file.transaction():
            added = self._db.execute(
                "INSERT INTO replies VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
                (
                    reservation.key, reply.model, reply.endpoint, _dump_reply(reply), reply.prompt_tokens,
                    reply.completion_tokens, reply.cached_tokens, cost, time.time(),
                ),
            )  # fmt: skip
            if added.rowcount:
                self._db.execute("DELETE FROM attempts WHERE id = ?", (reservation.id,))
            else:  # a batch that was taken for lost brought it too
                self._move(reservation, "wasted", cost)

    def waste(self, reservation: Reservation, cost: int | None) -> None:
        """Charged, and nothing usable came back."""
        with self._file.transaction():
            self._move(reservation, "wasted", cost)

    def release(self, reservation: Reservation) -> None:
        """Not charged."""
        with self._file.transaction():
            self._db.execute("DELETE FROM attempts WHERE id = ?", (reservation.id,))

    def doubt(self, reservation: Reservation) -> None:
        """Perhaps charged: its upper bound counts as spent."""
        with self._file.transaction():
            self._move(reservation, "doubtful", reservation.amount)

    # ----------------------------------------------------------------------------------------------------------------
    # Batches: requests in flight that belong to no process

    def open_batch(
        self, name: str, base_url: str, endpoint: str, wanted: Iterable[tuple[str, int | None]]
    ) -> list[Reservation]:
        """Reserve requests for a batch before it is submitted; those that are answered or in flight are left out.

        Args:
            wanted: key and most that it can cost, of each. Where one has no room in the budget, the batch ends there.

        Returns:
            What may be submitted; empty, and no batch, where that is nothing.
        """
        with self._file.transaction():
            reserved = []
            for key, amount in wanted:
                if self.find(key) is not None or self._flight(key) is not None:
                    continue
                if not self._fits(amount, self.account(), with_flights=True):
                    break
                reserved.append(self._insert(key, endpoint, amount, owner=None, batch=name))
            if reserved:
                self._db.execute(
                    "INSERT INTO batches VALUES (?, ?, NULL, ?, ?)", (name, base_url, self._owner, time.time())
                )
            return reserved

    def submitted(self, name: str, server_id: str) -> None:
        """The server has the batch, under this id."""
        with self._file.transaction():
            self._db.execute("UPDATE batches SET server_id = ? WHERE name = ?", (server_id, name))

    def batches(self, base_url: str) -> list[Batch]:
        """The batches under way at a server, of whatever run."""
        with self._file.reading():
            rows = self._db.execute(
                "SELECT name, server_id, owner FROM batches WHERE base_url = ? ORDER BY created", (base_url,)
            ).fetchall()
        return [Batch(name, server_id, not self._is_alive(owner)) for name, server_id, owner in rows]

    def batch_reservations(self, name: str) -> dict[str, Reservation]:
        """What a batch still has in flight, by key."""
        with self._file.reading():
            rows = self._db.execute(
                "SELECT id, key, endpoint, amount FROM attempts WHERE batch = ? AND state = 'in_flight'", (name,)
            ).fetchall()
        return {row[1]: Reservation(*row) for row in rows}

    def close_batch(self, name: str) -> None:
        """Forget a batch that has nothing in flight any more; one that has stays."""
        with self._file.transaction():
            if not self.batch_reservations(name):
                self._db.execute("UPDATE attempts SET batch = NULL WHERE batch = ?", (name,))
                self._db.execute("DELETE FROM batches WHERE name = ?", (name,))

    # ----------------------------------------------------------------------------------------------------------------
    # The account

    def account(self) -> Account:
        """What was spent, is reserved, and is in doubt, over all runs."""
        with self._file.reading():
            rows = self._db.execute("SELECT state, requests, amount, unpriced FROM spending").fetchall()
        return Account(**{state: Entry(*numbers) for state, *numbers in rows})

    def settle_doubtful(self, dollars: float) -> int:
        """Replace all that is in doubt by what the provider's bill has for it; returns how many requests that were.

        Raises:
            ConfigError: an amount below 0, or above what they can have cost.
        """
        with self._file.transaction():
            doubtful = self.account().doubtful
            charged = to_pico(dollars)
            if charged < 0 or (charged > doubtful.amount and not doubtful.unpriced):
                raise ConfigError(
                    f"the {doubtful.requests} doubtful requests of {self.path} cost between $0 and "
                    f"{format_dollars(doubtful.amount)}; ${dollars:g} is not in between"
                )
            if doubtful.requests:
                self._db.execute("DELETE FROM attempts WHERE state = 'doubtful'")
                self._db.execute(
                    "INSERT INTO attempts (key, endpoint, amount, state, created) VALUES ('', 'bill', ?, 'wasted', ?)",
                    (charged, time.time()),
                )
            return doubtful.requests

    # ----------------------------------------------------------------------------------------------------------------
    # Inside a transaction

    def _insert(
        self, key: str, endpoint: str, amount: int | None, *, owner: int | None, batch: str | None
    ) -> Reservation:
        inserted = self._db.execute(
            "INSERT INTO attempts (key, endpoint, amount, state, owner, batch, created) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (key, endpoint, amount, "in_flight", owner, batch, time.time()),
        )
        return Reservation(int(inserted.lastrowid or 0), key, endpoint, amount)

    def _move(self, reservation: Reservation, state: str, amount: int | None) -> None:
        self._db.execute(
            "UPDATE attempts SET state = ?, amount = ?, owner = NULL WHERE id = ?", (state, amount, reservation.id)
        )

    def _flight(self, key: str) -> tuple[int | None, str | None] | None:
        """(owner, batch) of a request in flight."""
        return self._db.execute(  # type: ignore[no-any-return]
            "SELECT owner, batch FROM attempts WHERE key = ? AND state = 'in_flight'", (key,)
        ).fetchone()

    def _is_in_flight(self, key: str) -> bool:
        flight = self._flight(key)
        if flight is None:
            return False
        owner, batch = flight
        if owner is None:
            raise EndpointError(
                "bad_request",
                f"a request is part of the batch {batch}, which is under way: the same command with --batch fetches it",
            )
        if self._is_alive(owner):
            return True
        self._bury(owner)
        return False

    def _has_room(self, amount: int | None) -> bool:
        """Does it fit the budget now? Raises: EndpointError where it doesn't, whatever those in flight will cost."""
        account = self.account()
        if not self._fits(amount, account, with_flights=False):
            raise EndpointError(
                "budget",
                f"the budget of {format_dollars(self.budget or 0)} has no room: {format_dollars(account.spent)} are "
                f"spent ({format_dollars(account.doubtful.amount)} of them in doubt), and the next request may cost "
                f"{format_dollars(amount or 0)}",
            )
        if self._fits(amount, account, with_flights=True):
            return True
        self._bury_dead()
        return False

    def _fits(self, amount: int | None, account: Account, *, with_flights: bool) -> bool:
        if self.budget is None:
            return True
        if amount is None:
            raise ConfigError("a budget needs the price of every model")
        return account.spent + amount + (account.in_flight.amount if with_flights else 0) <= self.budget

    # ----------------------------------------------------------------------------------------------------------------
    # Owners: the processes that have requests in flight

    def _register(self) -> tuple[int, int]:
        """(our number, the locked file that shows that we are alive); puts the dead ones' requests in doubt."""
        with self._file.transaction():
            self._bury_dead()
            inserted = self._db.execute("INSERT INTO owners (pid, created) VALUES (?, ?)", (os.getpid(), time.time()))
            number = int(inserted.lastrowid or 0)
            # Locked before the transaction shows others our number.
            lock = os.open(self._owner_path(number), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            fcntl.flock(lock, fcntl.LOCK_EX)
            return number, lock

    def _owner_path(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.owner-{number}")

    def _is_alive(self, number: int) -> bool:
        if number == self._owner:
            return True
        try:
            handle = os.open(self._owner_path(number), os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(handle)
        return False

    _owner = 0
    _owner_lock = -1

    def _bury_dead(self) -> None:
        for (number,) in self._db.execute("SELECT id FROM owners").fetchall():
            if not self._is_alive(number):
                self._bury(number)

    def _bury(self, number: int) -> None:
        """What an owner had in flight is in doubt from now on."""
        lost = self._db.execute(
            "UPDATE attempts SET state = 'doubtful', owner = NULL WHERE owner = ? AND state = 'in_flight' "
            "RETURNING amount",
            (number,),
        ).fetchall()
        self._db.execute("DELETE FROM owners WHERE id = ?", (number,))
        self._owner_path(number).unlink(missing_ok=True)
        if lost:
            most = format_dollars(sum(amount or 0 for (amount,) in lost))
            log.warning(
                "%s: %d requests were in flight when their process ended; at most %s may have been charged for them",
                self.path, len(lost), most,
            )  # fmt: skip


def _dump_reply(reply: Reply) -> str:
    fields: dict[str, Any] = dataclasses.asdict(reply)
    for name in ("cost", "from_ledger", "seconds", "endpoint"):
        del fields[name]
    return json.dumps({name: value for name, value in fields.items() if value not in (None, "", ())})


def _load_reply(text: str, endpoint: str, cost: int | None) -> Reply:
    fields = json.loads(text)
    if "logprobs" in fields:
        fields["logprobs"] = tuple(
            TokenLogprob(entry["token"], entry["logprob"], tuple((name, value) for name, value in entry["top"]))
            for entry in fields["logprobs"]
        )
    fields["tool_calls"] = tuple(fields.get("tool_calls", ()))
    fields.setdefault("text", "")
    dollars = None if cost is None else to_dollars(cost)
    return Reply(**fields, endpoint=endpoint, cost=dollars, from_ledger=True, seconds=0.0)
