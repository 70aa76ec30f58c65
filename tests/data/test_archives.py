"""Downloads from a server on this machine that breaks off, ignores ranges, or lies."""

import hashlib
import http.server
import threading
import types

import numpy as np
import pytest

from zosam_jax import data
from zosam_jax.data import archives

CONTENT = np.random.default_rng(0).integers(0, 256, 300_000, np.uint8).tobytes()


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves `server.content`, and ends a connection after `server.cuts` bytes."""

    def do_GET(self):
        server, content = self.server, self.server.content
        if content is None:
            self.send_error(404)
            return
        asked = self.headers.get("Range")
        server.asked.append(asked)
        start = int(asked[6:-1]) if asked and server.ranges else 0
        if start and start >= len(content):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        if start:
            end = len(content) - 1
            self.send_header("Content-Range", f"bytes {start}-{end}/{len(content)}")
        if server.says_length:
            self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        cut = server.cuts.pop(0) if server.cuts else len(content)
        self.wfile.write(content[start : start + cut])

    def log_message(self, format, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(archives, "_PAUSE", 0.0)
    monkeypatch.setattr(archives, "_BLOCK", 1 << 14)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.content, server.ranges, server.says_length = CONTENT, True, True
        server.asked, server.cuts = [], []
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def fetch(server, path, progress=lambda line: None, content=CONTENT):
    checksum = hashlib.sha256(content).hexdigest()
    wanted = types.SimpleNamespace(size=len(content), checksum=checksum)
    url = f"http://127.0.0.1:{server.server_address[1]}/x"
    archives.fetch(url, wanted, path, progress)


@pytest.mark.parametrize("says_length", [True, False])
def test_a_lost_connection_is_taken_up_where_it_ended(server, tmp_path, says_length):
    server.says_length = says_length
    server.cuts = [100_000, 50_000]
    lines = []
    fetch(server, tmp_path / "x", lines.append)
    assert (tmp_path / "x").read_bytes() == CONTENT
    assert server.asked == [None, "bytes=100000-", "bytes=150000-"]
    assert len(lines) == 10
    assert lines[-1] == "x: 300,000 of 300,000 bytes"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_the_next_call_goes_on(server, tmp_path):
    server.cuts = [100_000, 0]
    with pytest.raises(
        archives.DownloadError, match=r"100,000 of 300,000 bytes are kept"
    ):
        fetch(server, tmp_path / "x")
    assert (tmp_path / "x.part").read_bytes() == CONTENT[:100_000]
    fetch(server, tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == CONTENT
    assert server.asked[-1] == "bytes=100000-"


def test_an_interruption_by_the_user_keeps_what_came(server, tmp_path):
    def stop(line):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(server, tmp_path / "x", stop)
    kept = (tmp_path / "x.part").read_bytes()
    assert 30_000 <= len(kept) < len(CONTENT)
    assert CONTENT.startswith(kept)
    fetch(server, tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == CONTENT


def test_a_server_without_ranges_sends_all_again(server, tmp_path):
    server.ranges, server.cuts = False, [100_000]
    fetch(server, tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == CONTENT
    assert server.asked == [None, "bytes=100000-"]


def test_a_file_that_is_there_is_not_fetched(server, tmp_path):
    (tmp_path / "x").write_bytes(CONTENT)
    fetch(server, tmp_path / "x")
    assert server.asked == []
    (tmp_path / "x").write_bytes(CONTENT[:-1])
    fetch(server, tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == CONTENT


def test_a_complete_part_is_only_checked(server, tmp_path):
    (tmp_path / "x.part").write_bytes(CONTENT)
    fetch(server, tmp_path / "x")
    assert server.asked == []


def test_a_part_that_is_too_long_is_begun_anew(server, tmp_path):
    (tmp_path / "x.part").write_bytes(CONTENT + b"more")
    fetch(server, tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == CONTENT
    assert server.asked == ["bytes=300004-", None]


@pytest.mark.parametrize("begun", [0, 100_000])
def test_another_content_is_refused_and_removed(server, tmp_path, begun):
    server.content = CONTENT[:200_000] + bytes(100_000)
    (tmp_path / "x.part").write_bytes(CONTENT[:begun])
    with pytest.raises(data.DatasetError, match=r"is not x.*SHA-256.*Fetch it again"):
        fetch(server, tmp_path / "x")
    assert list(tmp_path.iterdir()) == []
    server.content = CONTENT
    fetch(server, tmp_path / "x")


def test_an_address_without_a_file_leaves_nothing(server, tmp_path):
    server.content = None
    with pytest.raises(archives.DownloadError, match=r"could not be downloaded: .*404"):
        fetch(server, tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_two_at_once_are_refused(server, tmp_path):
    def again(line):
        with pytest.raises(data.DatasetError, match=r"Another process is writing"):
            fetch(server, tmp_path / "x")

    fetch(server, tmp_path / "x", again)
    assert (tmp_path / "x").read_bytes() == CONTENT


@pytest.mark.parametrize("says_length", [True, False])
def test_a_server_that_sends_more_than_the_file_is_cut_off(
    server, tmp_path, says_length
):
    server.says_length, server.content = says_length, CONTENT + CONTENT
    for _ in range(2):
        with pytest.raises(data.DatasetError, match="more than the 300,000 bytes"):
            fetch(server, tmp_path / "x")
        assert not list(tmp_path.iterdir())
