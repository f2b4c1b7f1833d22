"""docs/service.md: its curl lines work on a service with its limits file and a key."""

import json
import os
import re
import subprocess
from pathlib import Path

from running import ROOT, onequota
from servers import needs

TEXT = (ROOT / "docs" / "service.md").read_text()
SECRET = "0123456789abcdef" * 2


def test_every_curl_line_of_the_document_works(tmp_path: Path) -> None:
    needs("curl")
    [catalog] = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
    (tmp_path / "limits.yaml").write_text(catalog)
    lines = re.findall(r"^curl .*$", TEXT, re.MULTILINE)
    variables = {"ONEQUOTA_API_KEYS": f"gateway:{SECRET}:*"}
    arguments = ("serve", "--port", "0", "--workers", "2", "--limits", "limits.yaml")
    with onequota(tmp_path, *arguments, variables=variables) as running:
        place = running.banner["url"].removeprefix("http://")
        answers = []
        for line in lines:
            command = ["/bin/sh", "-c", line.replace("localhost:8000", place)]
            known = os.environ | {"ONEQUOTA_API_KEY": SECRET}
            said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60, env=known)
            answers.append(json.loads(said.stdout))
    inline, named, many, reserved, leased, refunded = answers
    assert [limit["limit"] for limit in inline["limits"]] == [10, 200]
    assert named["statuses"][0]["rule"] == "chat.user"
    assert [result["allowed"] for result in many["results"]] == [True, True]
    assert [limit["remaining"] for limit in refunded["limits"]] == [99_000]
    assert (reserved["expires_in"], leased["expires_in"]) == (600, 60)
    assert [limit["name"] for limit in leased["limits"]] == ["3 at once", "20/minute"]
