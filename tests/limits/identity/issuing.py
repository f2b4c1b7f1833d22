"""Somebody who issues tokens and publishes keys, as Supabase Auth does: a real HTTP server on loopback."""

import base64
import hashlib
import hmac
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

SECRET = "a secret of Supabase that has more than 32 bytes"
SECRET_BYTES = SECRET.encode()
SUBJECT = "3f0c8a52-0000-4000-8000-00000000cafe"
NOW = int(time.time())
LATER = NOW + 3600
PROJECT = "https://project.example"
ISSUER = f"{PROJECT}/auth/v1"

RSA_KEY = rsa.generate_private_key(65537, 2048)
OTHER_RSA = rsa.generate_private_key(65537, 2048)
WEAK_RSA = rsa.generate_private_key(65537, 1024)
EC_KEY = ec.generate_private_key(ec.SECP256R1())
OTHER_EC = ec.generate_private_key(ec.SECP256R1())
LARGE_EC = ec.generate_private_key(ec.SECP384R1())


def published(key, key_id, **more):
    """A key as a member of a JWKS document."""
    algorithm = RSAAlgorithm if isinstance(key, rsa.RSAPrivateKey) else ECAlgorithm
    name = "RS256" if algorithm is RSAAlgorithm else "ES256"
    member = json.loads(algorithm(algorithm.SHA256).to_jwk(key.public_key()))
    found = {**member, "kid": key_id, "use": "sig", "alg": name, "key_ops": ["verify"], **more}
    return {name: value for name, value in found.items() if value is not None}


KEYS = [published(RSA_KEY, "r1"), published(EC_KEY, "e1")]


def claims(**more):
    """What Supabase says in a token; None takes a claim out."""
    said = {
        "sub": SUBJECT,
        "aud": "authenticated",
        "iss": ISSUER,
        "exp": LATER,
        "iat": NOW - 60,
        "role": "authenticated",
    }
    return {name: value for name, value in {**said, **more}.items() if value is not None}


def issued(key=SECRET, algorithm="HS256", key_id=None, head=None, **more):
    """A token with these claims."""
    headers = {"kid": key_id, **(head or {})} if key_id is not None else head
    return jwt.encode(claims(**more), key, algorithm, headers=headers)


def b64(value):
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def assembled(head, payload=None, key=SECRET_BYTES):
    """A token put together by hand, so that no library objects; HMAC-SHA256 with `key`, or without a signature."""
    text = f"{b64(head)}.{b64(claims() if payload is None else payload)}"
    if key is None:
        return f"{text}."
    return f"{text}.{b64(hmac.new(key, text.encode(), hashlib.sha256).digest())}"


class Publisher:
    """Serves a JWKS document.

    Attributes:
        document: What it answers; bytes as they are.
        status: With which status.
        delay_s: After how long.
        asked: How often it was asked.
    """

    def __init__(self):
        self.document = {"keys": KEYS}
        self.status = 200
        self.delay_s = 0
        self.asked = 0
        self.headers = {}
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                outer.asked += 1
                time.sleep(outer.delay_s)
                body = outer.document if isinstance(outer.document, bytes) else json.dumps(outer.document).encode()
                self.send_response(outer.status)
                for name, value in outer.headers.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        class Server(ThreadingHTTPServer):
            def handle_error(self, *_):
                pass  # whoever asked has gone: that is what some tests want

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/auth/v1/.well-known/jwks.json"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    def close(self):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def asking(peer="203.0.113.7", **headers):
    """A connection with these headers; `_` in a name is `-`, a list is several lines."""
    from starlette.requests import HTTPConnection

    lines = []
    for name, values in headers.items():
        for value in values if isinstance(values, list) else [values]:
            lines.append(
                (name.replace("_", "-").encode(), value if isinstance(value, bytes) else value.encode("latin-1"))
            )
    return HTTPConnection({"type": "http", "client": (peer, 4711), "headers": lines})


async def told(resolver, connection):
    """What a resolver answers, waited for if need be."""
    answer = resolver(connection)
    return await answer if hasattr(answer, "__await__") else answer
