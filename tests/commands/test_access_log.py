"""Lines of access logs, as they are found."""

import pytest

from service.commands.access_log import UnreadableError, read

AT_US = 1_764_005_525_000_000  # 2025-11-24T17:32:05Z
AGENT = "Mozilla/5.0 (X11)"


@pytest.mark.parametrize(
    ("line", "fields"),
    [
        (
            '192.0.2.1 - - [24/Nov/2025:17:32:05 +0000] "GET /a?b=1 HTTP/1.1" 200 512',
            {"remote_address": "192.0.2.1", "method": "GET", "path": "/a"},
        ),
        (
            '2001:db8::1 - alice [24/Nov/2025:18:32:05 +0100] "POST /a HTTP/2.0" 429 - "http://r" "Mozilla/5.0 (X11)"',
            {"remote_address": "2001:db8::1", "method": "POST", "path": "/a", "user": "alice", "user_agent": AGENT},
        ),
        (
            'quota.example:443 192.0.2.1 - - [24/Nov/2025:12:02:05 -0530] "GET / HTTP/1.1" 200 1 "-" "-"',
            {"remote_address": "192.0.2.1", "method": "GET", "path": "/", "host": "quota.example:443"},
        ),
        (
            r'192.0.2.1 - - [24/Nov/2025:17:32:05 +0000] "GET /\"x\" HTTP/1.1" 200 1 "-" "a \"b\" c"',
            {"remote_address": "192.0.2.1", "method": "GET", "path": r"/\"x\"", "user_agent": r"a \"b\" c"},
        ),
        (r'192.0.2.1 - - [24/Nov/2025:17:32:05 +0000] "\x16\x03\x01" 400 0', {"remote_address": "192.0.2.1"}),
        (
            '{"timestamp": "2025-11-24T17:32:05.000Z", "level": "info", "logger": "uvicorn.access", "event": "…", '
            '"pid": 7, "client": "192.0.2.1:50000", "method": "GET", "path": "/a?b=1", "status": 200}',
            {"remote_address": "192.0.2.1", "method": "GET", "path": "/a"},
        ),
        (
            '{"time_iso8601": "2025-11-24T18:32:05+01:00", "remote_addr": "2001:db8::1", "request_method": "PUT", '
            '"request_uri": "/a", "http_host": "h", "remote_user": "-", "http_user_agent": "x"}',
            {"remote_address": "2001:db8::1", "method": "PUT", "path": "/a", "host": "h", "user_agent": "x"},
        ),
        ('{"ts": 1764005525, "client": "[2001:db8::1]:80", "method": "GET", "url": "/"}',
         {"remote_address": "2001:db8::1", "method": "GET", "path": "/"}),
        ('{"msec": "1764005525.000", "method": "GET", "uri": "/"}', {"method": "GET", "path": "/"}),
    ],
)  # fmt: skip
def test_a_line_tells_when_and_what(line, fields):
    seen = read(line + "\n")
    assert seen is not None
    assert (seen.at_us, seen.fields) == (AT_US, fields)


@pytest.mark.parametrize("line", ["", "   \n", '{"event": "catalog_loaded", "timestamp": "2025-11-24T17:32:05Z"}'])
def test_what_is_about_no_request_is_passed_over(line):
    assert read(line) is None


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("hello", "neither the common or combined format nor JSON"),
        ("{", "not JSON"),
        ('{"method": "GET", "path": "/"}', "no time"),
        ('{"method": "GET", "path": "/", "time": "noon"}', 'no time, "noon"'),
        ('{"method": "GET", "path": "/", "time": 99999999999999999999}', 'no time, "99999999999999999999"'),
        ('192.0.2.1 - - [24/Nov/2025 17:32:05] "GET / HTTP/1.1" 200 1', 'no time, "24/Nov/2025 17:32:05"'),
        ('192.0.2.1 - - [31/Feb/2025:17:32:05 +0000] "GET / HTTP/1.1" 200 1', 'no time, "31/Feb'),
        ('192.0.2.1 - - [24/Dez/2025:17:32:05 +0000] "GET / HTTP/1.1" 200 1', 'no time, "24/Dez'),
    ],
)
def test_what_is_no_line_of_a_log_says_so(line, says):
    with pytest.raises(UnreadableError) as caught:
        read(line)
    assert says in str(caught.value)
