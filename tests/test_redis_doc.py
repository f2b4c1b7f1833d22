"""docs/redis.md says what the tests run."""

import re
from pathlib import Path

from topologies import ACL

from service.redis_url import parse_redis_url

DOC = (Path(__file__).parents[1] / "docs" / "redis.md").read_text()


def test_the_acl_it_recommends_is_the_one_that_was_tried() -> None:
    assert f"on >PASSWORD {ACL}\n" in DOC


def test_every_url_it_shows_can_be_meant() -> None:
    urls = re.findall(r"`((?:redis|rediss|unix)[a-z+]*://[^`…]{2,})`", DOC)
    assert len(urls) >= 4
    for url in urls:
        parse_redis_url(url.replace("HOST", "h").replace("/DB", "/0"))
