"""Load on Redis with redis-py. A kind is a command's name as `INFO commandstats` has it: "get", "client|setinfo".

The operations of a report are all commands that the library sent, also those of its handshake: HELLO with RESP3, and
with `handshake` two CLIENT SETINFO a connection, and with RESP3 over TCP one CLIENT MAINT_NOTIFICATIONS. `each` has
what the load itself asked for.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import redis
from redis.maint_notifications import MaintNotificationsConfig

from tests.e2e.programs.operations import Operation, Recorder, boottime_ns, serve, spread

_Address = dict[str, Any]

# Each with the kind that the server counts it under, and its error: WRONGTYPE, or ERR for the others.
_ERRORS: list[tuple[str, tuple[str, ...]]] = [
    ("lpush", ("LPUSH", "text", "1")),
    ("incr", ("INCR", "text")),
    ("get", ("GET",)),
    ("unknown", ("NOSUCH", "1")),
]


def _code(error: Exception) -> str | None:
    if not isinstance(error, redis.ResponseError):
        return None
    # redis-py takes "ERR " off the message and leaves every other code where it was.
    first = str(error).split(" ")[0]
    return first if first.isupper() else "ERR"


def _kind(*command: Any) -> str:
    words = [str(word).lower() for word in " ".join(str(part) for part in command[:2]).split()]
    if words[0] == "nosuch":
        return "unknown"
    return "|".join(words[:2]) if words[0] in ("client", "config") else words[0]


def _client(log: Recorder, address: _Address, protocol: int, handshake: bool) -> redis.Redis:
    """A client whose connections write down each command they send."""
    base: Any = redis.UnixDomainSocketConnection if "path" in address else redis.Connection

    class Recorded(base):  # type: ignore[misc]
        def send_command(self, *args: Any, **options: Any) -> None:
            log.sent.append(_kind(*args))
            super().send_command(*args, **options)

        def pack_commands(self, commands: Any) -> Any:
            commands = list(commands)
            log.sent.extend(_kind(*command) for command in commands)
            return super().pack_commands(commands)

    options: dict[str, Any] = {"protocol": protocol, "decode_responses": True}
    if not handshake:
        options |= {"driver_info": None, "maint_notifications_config": MaintNotificationsConfig(enabled=False)}
    return redis.Redis(connection_pool=redis.ConnectionPool(connection_class=Recorded, **address, **options))


def _connect(log: Recorder, address: _Address, protocol: int, handshake: bool) -> AbstractContextManager[redis.Redis]:
    @contextmanager
    def connected() -> Iterator[redis.Redis]:
        client = _client(log, address, protocol, handshake)
        connection = client.connection_pool.get_connection()
        client.connection_pool.release(connection)
        try:
            yield client
        finally:
            client.close()
            client.connection_pool.disconnect()

    return connected()


def commands(
    log: Recorder, address: _Address, count: int, connections: int = 1, protocol: int = 2, handshake: bool = False
) -> None:
    """SET and GET in turn."""

    def work(client: redis.Redis, share: int) -> None:
        for number in range(share):
            with log.operation("get" if number % 2 else "set"):
                assert client.get("text") == "x" if number % 2 else client.set("text", "x")

    spread(count, connections, lambda: _connect(log, address, protocol, handshake), work)


def pipelines(
    log: Recorder,
    address: _Address,
    count: int,
    connections: int = 1,
    protocol: int = 2,
    batch: int = 10,
    transaction: bool = False,
) -> None:
    """Pipelines of so many INCRBY, `count` in all; a transaction sends MULTI before and EXEC after them."""

    def work(client: redis.Redis, share: int) -> None:
        for first in range(0, share, batch):
            pipeline = client.pipeline(transaction=transaction)
            for _ in range(min(batch, share - first)):
                pipeline.incr("number")
            start = boottime_ns()
            numbers = pipeline.execute()
            log.each.extend([Operation("incrby", start, boottime_ns())] * len(numbers))

    spread(count, connections, lambda: _connect(log, address, protocol, False), work)


def errors(log: Recorder, address: _Address, count: int, connections: int = 1, protocol: int = 2) -> None:
    """Commands that all fail, four kinds in turn. The key `text` must hold a text."""

    def work(client: redis.Redis, share: int) -> None:
        for number in range(share):
            kind, command = _ERRORS[number % len(_ERRORS)]
            with log.operation(kind):
                client.execute_command(*command)  # type: ignore[no-untyped-call]

    spread(count, connections, lambda: _connect(log, address, protocol, False), work)


def subscription(log: Recorder, address: _Address, count: int, protocol: int = 2) -> None:
    """SUBSCRIBE once; then so many PUBLISH on another connection, each of which arrives."""
    with (
        _connect(log, address, protocol, False) as publisher,
        _connect(log, address, protocol, False) as client,
        client.pubsub() as subscriber,  # type: ignore[no-untyped-call]
    ):
        with log.operation("subscribe"):
            subscriber.subscribe("news")
            assert subscriber.get_message(timeout=120)["type"] == "subscribe"
        for number in range(count):
            with log.operation("publish"):
                assert publisher.publish("news", number) == 1
            assert subscriber.get_message(timeout=120)["data"] == str(number)


def blocking(log: Recorder, address: _Address, count: int, protocol: int = 2, wait_ms: int = 2) -> None:
    """So many BLPOP, each answered only when the other connection has pushed, so many milliseconds later."""
    waiting = threading.Semaphore(0)

    def pop(client: redis.Redis) -> None:
        for number in range(count):
            waiting.release()
            with log.operation("blpop"):
                answer = client.blpop(["queue"], timeout=120)
            assert answer is not None
            assert answer[1] == str(number)

    with (
        _connect(log, address, protocol, False) as popper,
        _connect(log, address, protocol, False) as pusher,
        ThreadPoolExecutor(1) as pool,
    ):
        popping = pool.submit(pop, popper)
        for number in range(count):
            assert waiting.acquire(timeout=120)
            time.sleep(wait_ms / 1000)
            with log.operation("rpush"):
                pusher.rpush("queue", number)
        popping.result()


if __name__ == "__main__":
    serve(
        _code,
        {
            "commands": commands,
            "pipelines": pipelines,
            "errors": errors,
            "subscription": subscription,
            "blocking": blocking,
        },
    )
