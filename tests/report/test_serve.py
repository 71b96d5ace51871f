"""The served report: this machine only, built anew when the record has changed."""

from __future__ import annotations

import http.client
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import pytest

from cdn_tune.config import Experiment
from cdn_tune.errors import RunError
from cdn_tune.report import serve
from cdn_tune.report.answers import recorded_predictions
from cdn_tune.report.serve import LiveReport, open_server
from tests.report.test_page import data_of

MakeRun = Callable[..., Path]


@pytest.fixture
def run(make_run: MakeRun, tiny: Callable[..., Experiment], monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(serve, "_PAUSE", 0.0)
    monkeypatch.setattr(serve, "_SHARE", 0.0)
    return make_run(tiny(), trials=3)


@contextmanager
def serving(run: Path, videos: Path | None = None) -> Iterator[int]:
    server = open_server(LiveReport(run, views=0, videos=videos))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield int(server.server_address[1])
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def port(run: Path) -> Iterator[int]:
    with serving(run) as port:
        yield port


def get(port: int, path: str, host: str | None = None) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", path, headers={"Host": host or f"127.0.0.1:{port}"})
    answer = connection.getresponse()
    body = answer.read().decode()
    connection.close()
    return answer.status, body


def test_the_page_follows_the_record(run: Path, port: int) -> None:
    status, page = get(port, "/")
    assert status == 200
    _, before = get(port, "/stamp")
    assert f'<meta name="live" content="{before}">' in page
    assert get(port, "/stamp")[1] == before
    (run / "evaluation.json").write_text('{"metrics": {"mIoU": 0.4321}, "looks": 1}')
    _, after = get(port, "/stamp")
    assert after != before
    _, page = get(port, "/")
    assert "43.21" in page
    assert f'<meta name="live" content="{after}">' in page


def test_nothing_else_is_served(port: int) -> None:
    assert get(port, "/study.db")[0] == 404
    assert get(port, "/../manifest.json")[0] == 404
    assert get(port, "/stamp/?x=1")[0] == 404


def part(port: int, path: str, wanted: str) -> tuple[int, str | None, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", path, headers={"Range": wanted})
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, answer.getheader("Content-Range"), body


def test_the_pages_videos_are_served_in_parts_and_nothing_beside_them(
    make_run: MakeRun, tiny: Callable[..., Experiment], tmp_path: Path
) -> None:
    run = make_run(tiny(), trials=3, queries=5)
    name = recorded_predictions(run / "predictions.jsonl").queries[0].video
    content = bytes(range(256)) * 2000
    (tmp_path / f"{name}.mp4").write_bytes(content)
    (tmp_path / "secret.mp4").write_bytes(b"of no query")
    with serving(run, tmp_path) as port:
        page = get(port, "/")[1]
        assert "media-src &#39;self&#39;" in page
        assert data_of(page)["queries"]["links"] == {"0": "video/0"}
        assert part(port, "/video/0", "") == (200, None, content)
        assert part(port, "/video/0", "bytes=5-9") == (206, "bytes 5-9/512000", content[5:10])
        assert part(port, "/video/0", "bytes=511990-") == (206, "bytes 511990-511999/512000", content[-10:])
        assert part(port, "/video/0", "bytes=9-9999999")[2] == content[9:]
        assert part(port, "/video/0", "bytes=512000-")[0] == 416
        for path in ("/video/1", "/video/-1", "/video/0/../1", "/video/secret.mp4", "/video/", "/video/\u0660"):
            assert get(port, quote(path, safe="/."))[0] == 404
        assert get(port, "/video/0", host="evil.example")[0] == 403
        (tmp_path / f"{name}.mp4").unlink()
        assert get(port, "/video/0")[0] == 404


def test_a_query_is_no_other_page(port: int) -> None:
    assert get(port, "/?x=1") == get(port, "/")
    assert get(port, "/stamp?x=1") == get(port, "/stamp")


def test_a_foreign_name_is_refused(port: int) -> None:
    assert get(port, "/", host="evil.example")[0] == 403
    assert get(port, "/", host=f"localhost:{port}")[0] == 200


def test_it_listens_on_loopback_only(run: Path) -> None:
    with open_server(LiveReport(run, views=0)) as server:
        assert server.server_address[0] == "127.0.0.1"
        with pytest.raises(RunError, match="--port"):
            open_server(LiveReport(run, views=0), int(server.server_address[1]))


def test_a_record_that_cannot_be_read_leaves_the_page(run: Path) -> None:
    told: list[str] = []
    report = LiveReport(run, views=0, on_notice=told.append)
    page = report.page()
    (run / "study.db").write_bytes(b"half written")
    assert report.page() == page
    assert len(told) == 1
    assert "study.db" in told[0]


def test_connections_are_few_and_silent_ones_end(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "_ROOM", 2)
    with serving(run) as port:
        silent = [socket.create_connection(("127.0.0.1", port), timeout=30) for _ in range(2)]
        while refused := socket.create_connection(("127.0.0.1", port), timeout=30):
            with refused:  # closed at once, once both others have been accepted
                if not refused.recv(1):
                    break
        silent[0].close()
        while not answers(port):
            pass
        silent[1].close()
    monkeypatch.setattr(serve, "_SECONDS", 0.05)
    with serving(run) as port, socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(b"GET / HT")
        assert connection.recv(1) == b""


def answers(port: int) -> bool:
    try:
        return get(port, "/stamp")[0] == 200
    except (OSError, http.client.HTTPException):
        return False


def test_a_client_that_leaves_is_no_error(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told: list[str] = []
    with open_server(LiveReport(run, views=0, on_notice=told.append)) as server:
        for error in (BrokenPipeError(), ConnectionResetError(), TimeoutError(), KeyError("a")):
            try:
                raise error
            except (OSError, KeyError):
                server.handle_error(server.socket, ("127.0.0.1", 1))
    assert told == ["a request failed: KeyError: 'a'"]
    assert capsys.readouterr().err == ""
