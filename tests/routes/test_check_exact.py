"""One counter, four workers, a real Redis: single checks, bodies of many and retries, by domain: exactly the limit."""

import http.client
import json
import random
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from running import becomes, onequota
from servers import RedisServer

LIMIT = 1_500
SECRETS = {"one": "0123456789abcdef" * 2, "two": "fedcba9876543210" * 2}
KEYS = f"one:{SECRETS['one']}:d two:{SECRETS['two']}:*"
QUESTION = {"domain": "d", "descriptors": [[{"key": "k", "value": "v"}]]}
CATALOG = f"domain: d\ndescriptors:\n  - key: k\n    limits: {LIMIT}/day\n"


class Caller:
    """Asks over connections that it opens again and again, so that every worker is asked."""

    def __init__(self, port: int, name: str, number: int) -> None:
        self.admitted = 0
        self._port = port
        self._secret = SECRETS[name]
        self._number = number
        self._random = random.Random(number)

    def post(self, body: object, **headers: str) -> Any:
        with closing(http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)) as connection:
            own = {"content-type": "application/json", "x-api-key": self._secret}
            connection.request("POST", "/v1/check", json.dumps(body), own | headers)
            response = connection.getresponse()
            answer = json.load(response)
            assert response.status == 200, answer
            return answer

    def single(self, turn: int) -> int:
        return int(self.post(QUESTION)["allowed"])

    def many(self, turn: int) -> int:
        size = self._random.choice([2, 7, 40, 150])
        return sum(result["allowed"] for result in self.post({"checks": [QUESTION] * size})["results"])

    def heavy(self, turn: int) -> int:
        cost = self._random.randint(2, 9)
        return cost * self.post({**QUESTION, "cost": cost})["allowed"]

    def retried(self, turn: int) -> int:
        """Sent up to three times under one key, at once or one after the other; answered alike and charged once."""
        body, key = {"checks": [QUESTION] * 5}, f"{self._number}-{turn}"
        answers = [self.post(body, **{"idempotency-key": key})["results"] for _ in range(self._random.randint(1, 3))]
        found = [[result["allowed"] for result in results] for results in answers]
        assert found == [found[0]] * len(found)
        return sum(found[0])

    def run(self) -> None:
        ways: list[Callable[[int], int]] = [self.single, self.many, self.heavy, self.retried]
        refused = 0
        turn = 0
        while refused < 8:  # of the smallest cost: nothing is left for anybody
            found = ways[turn % len(ways)](turn) if refused == 0 else self.single(turn)
            self.admitted += found
            refused = refused + 1 if found == 0 else 0
            turn += 1


def test_callers_of_all_kinds_on_one_counter_are_admitted_exactly_its_limit(
    tmp_path: Path, redis_server: RedisServer
) -> None:
    file = tmp_path / "limits.yaml"
    file.write_text(CATALOG)
    arguments = ("serve", "--port", "0", "--workers", "4", "--redis", redis_server.url, "--limits", str(file))
    variables = {"ONEQUOTA_API_KEYS": KEYS, "ONEQUOTA_REDIS_TIMEOUT_MS": "30000"}
    with onequota(tmp_path, *arguments, variables=variables) as running:
        assert becomes(lambda: running.said().count("worker_serving") == 4, 60)
        port = int(running.banner["url"].rpartition(":")[2])
        callers = [Caller(port, name, number) for number, name in enumerate(["one", "two"] * 3)]
        threads = [threading.Thread(target=caller.run) for caller in callers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        assert not any(thread.is_alive() for thread in threads)
        assert sum(caller.admitted for caller in callers) == LIMIT
        assert min(caller.admitted for caller in callers) > 0
