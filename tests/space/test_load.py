"""The serving app under 200 clients at once, and what SIGTERM does to them."""

import asyncio
import random
import statistics
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import pytest

from tests.fakes.space_process import CHAT, SPACE, Server, needs_serving, serve, unpack

pytestmark = needs_serving
CLIENTS, QUEUE = 200, 16
BODY = {"messages": [{"role": "user", "content": "Where is my order?"}], "stream": True, "max_tokens": 64}


@dataclass
class Seen:
    """What happened to all clients together."""

    statuses: Counter[int] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)  # of whole answers
    refused: Counter[str] = field(default_factory=Counter)  # not a byte came: why
    early: dict[str, int] = field(default_factory=dict)  # of these, before SIGTERM
    broken: int = 0  # an answer that did not end
    left: int = 0
    queue: float = 0
    memory: list[tuple[float, float]] = field(default_factory=list)  # after so many seconds, MB of both processes

    def memory_at(self, seconds: float) -> float:
        return min(self.memory, key=lambda found: abs(found[0] - seconds))[1]


async def come_again(http: httpx2.AsyncClient, seen: Seen, dice: random.Random) -> None:
    """Ask until nobody listens any more; one time in ten, leave in the middle."""
    while True:
        begun, answered = time.monotonic(), False
        try:
            async with http.stream("POST", CHAT, json=BODY) as reply:
                answered = True
                seen.statuses[reply.status_code] += 1
                lines = aiter(reply.aiter_lines())
                if reply.status_code == 200 and dice.random() < 0.1:
                    await anext(lines)
                    seen.left += 1
                    continue
                last = [line async for line in lines if line][-1]
        except httpx2.TransportError as error:
            seen.broken += answered
            seen.refused[type(error).__name__] += not answered
            return
        if reply.status_code == 200:
            seen.broken += last != "data: [DONE]"
            seen.seconds.append(time.monotonic() - begun)
        await asyncio.sleep(float(reply.headers.get("Retry-After", 0)) * dice.uniform(1, 1.5))


async def watch(server: Server, seen: Seen, seconds: int) -> None:
    """For so many seconds, and until enough was seen to judge by, however slow the machine is."""
    begun = time.monotonic()
    while (passed := time.monotonic() - begun) < seconds or not (seen.left and len(seen.seconds) > 10):
        assert passed < 120
        resident = "process_resident_memory_bytes", "engine_process_resident_memory_bytes"
        memory = [await asyncio.to_thread(server.metric, name) for name in resident]
        seen.memory.append((passed, sum(memory) / 1e6))
        await asyncio.sleep(0.5)
    seen.queue = await asyncio.to_thread(server.metric, "chat_queue_most")


async def press(server: Server, seconds: int) -> Seen:
    seen = Seen()
    limits = httpx2.Limits(max_connections=None)
    async with httpx2.AsyncClient(base_url=server.client.base_url, timeout=60, limits=limits) as http:
        clients = [asyncio.create_task(come_again(http, seen, random.Random(seed))) for seed in range(CLIENTS)]
        await watch(server, seen, seconds)
        seen.early = dict(seen.refused)
        server.process.terminate()
        await asyncio.gather(*clients)
    return seen


@pytest.mark.parametrize("seconds", [5, pytest.param(30, marks=pytest.mark.slow)])
def test_200_clients_are_answered_or_sent_away_and_sigterm_lets_begun_answers_end(seconds: int, tmp_path: Path) -> None:
    with serve(SPACE / "app.py", MODEL_DIR=str(unpack(tmp_path)), MAX_QUEUE=str(QUEUE)) as server:
        seen = asyncio.run(press(server, seconds))
        assert server.process.wait(timeout=120) == 143
    p50, p95 = (statistics.quantiles(seen.seconds, n=20)[place] for place in (9, 18))
    print(f"{seconds} s: statuses {dict(seen.statuses)}, p50 {p50:.2f} s, p95 {p95:.2f} s, left {seen.left}, "
          f"largest queue {seen.queue:.0f}, memory " +
          ", ".join(f"{seen.memory_at(at):.0f} MB at {at:.0f} s" for at in (seconds / 6, seconds / 2, seconds)))
    assert set(seen.statuses) == {200, 429}
    assert (seen.early, seen.broken, seen.refused.total()) == ({}, 0, CLIENTS)
    assert seen.left > 0
    assert seen.queue == QUEUE  # once full, as 429 says, and never more
    assert seen.memory_at(seconds) < seen.memory_at(seconds / 6) + 50
