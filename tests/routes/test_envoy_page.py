"""docs/envoy.md: its catalog is read, its configuration is Envoy's, its example answers what it says."""

import re
import subprocess
from pathlib import Path

import yaml
from envoy.config.cluster.v3 import cluster_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2
from google.protobuf import json_format
from running import onequota

from service.settings import Settings

PAGE = (Path(__file__).parents[2] / "docs" / "envoy.md").read_text()
LIMITS, CONFIGURATION = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)


def test_every_field_of_the_configuration_is_one_of_envoys() -> None:
    """Read by Envoy's own messages, the `@type`s included."""
    import envoy.extensions.filters.http.ratelimit.v3.rate_limit_pb2
    import envoy.extensions.upstreams.http.v3.http_protocol_options_pb2  # noqa: F401

    found = yaml.safe_load(CONFIGURATION)
    (one,) = found["http_filters"]
    read = json_format.ParseDict(one, http_connection_manager_pb2.HttpFilter())
    assert read.typed_config.TypeName() == "envoy.extensions.filters.http.ratelimit.v3.RateLimit"
    (cluster,) = found["clusters"]
    json_format.ParseDict(cluster, cluster_pb2.Cluster())
    asked = one["typed_config"]["rate_limit_service"]["grpc_service"]["envoy_grpc"]["cluster_name"]
    assert asked == cluster["name"]


def test_the_filter_waits_longer_than_a_decision_may_take() -> None:
    (one,) = yaml.safe_load(CONFIGURATION)["http_filters"]
    assert float(one["typed_config"]["timeout"].rstrip("s")) * 1000 > Settings.model_fields["redis_timeout_ms"].default


def test_the_example_answers_what_it_says(tmp_path: Path) -> None:
    command, answer = re.findall(r"\$ (curl.*)\n(\{.*\})\n", PAGE)[0]
    (tmp_path / "limits.yaml").write_text(LIMITS)
    with onequota(tmp_path, "serve", "--port", "0", "--workers", "1", "--limits", "limits.yaml") as running:
        place = running.banner["url"].removeprefix("http://")
        asked = command.replace("localhost:8000", place)
        assert asked != command
        done = subprocess.run(["/bin/sh", "-c", asked], capture_output=True, text=True, check=True, timeout=30)
    at_once = re.compile(r'"\d+s"|;t=\d+')  # when it was asked
    assert at_once.sub("", done.stdout) == at_once.sub("", answer)
