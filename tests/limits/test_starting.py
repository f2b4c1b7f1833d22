"""What cannot work is said when the server starts, under a real uvicorn: it must not start without us."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
APP = """
from fastapi import FastAPI
from service.limits import Limiter, identity

limiter = Limiter(identity.client_address, storage_uri="memory://")
app = FastAPI()
app.state.limiter = limiter
app.add_middleware(limiter.middleware)

{decorators}
async def chat(): ...
"""
REVERSED = '@limiter.limit("1/minute")\n@app.get("/chat")'
RIGHT = '@app.get("/chat")\n@limiter.limit("1/minute")'


@pytest.mark.parametrize(
    ("decorators", "environment", "says"),
    [
        (REVERSED, {}, "@limiter.limit stands above the route decorator of /chat"),
        (RIGHT, {"WEB_CONCURRENCY": "1", "ONEQUOTA_WORKERS": "4"}, "4 workers would each count for themselves"),
    ],
    ids=["reversed decorators", "memory and four workers"],
)
def test_the_server_does_not_start_and_says_why(tmp_path, decorators, environment, says):
    (tmp_path / "chat.py").write_text(APP.format(decorators=decorators))
    server = subprocess.run(
        [sys.executable, "-m", "uvicorn", "chat:app", "--port", "0"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert server.returncode == 3
    assert says in server.stderr
    assert "Traceback" not in server.stderr
