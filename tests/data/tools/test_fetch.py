"""A download goes on where it stopped and is checked before it is used."""

import hashlib
import os
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from fastarat.common.errors import UserError, WorkError
from fastarat.data.formats import cifar
from fastarat.data.open import open_dataset
from fastarat.data.tools.fetch import fetch
from tests.helpers.small_sets import cifar_archive, cifar_files, one_line


@pytest.fixture
def published(tmp_path, monkeypatch) -> bytes:
    """The bytes of a small archive that passes for the published one."""
    content = cifar_archive(tmp_path / "made.tar.gz", "cifar10", cifar_files("cifar10")).read_bytes()
    archive = replace(cifar.ARCHIVES["cifar10"], md5=hashlib.md5(content).hexdigest())
    monkeypatch.setitem(cifar.ARCHIVES, "cifar10", archive)
    return content


class Mirror(BaseHTTPRequestHandler):
    """Serves `server.content`; may ignore ranges or stop after `server.stop_after` bytes."""

    def do_GET(self):
        wanted = self.headers.get("Range")
        self.server.ranges.append(wanted)
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.server.resumes else 0
        body = self.server.content[start:]
        if self.path == "/gone":
            self.send_error(404)
        elif start and not body:
            self.send_error(416)
        else:
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: self.server.stop_after])

    def log_message(self, *arguments):
        pass


@pytest.fixture
def mirror(published):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Mirror)
    server.content, server.ranges, server.resumes, server.stop_after = published, [], True, None
    server.url = f"http://127.0.0.1:{server.server_port}/cifar.tar.gz"
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_fetched_archive_is_ready_to_open(mirror, root):
    path = fetch("cifar10", None, root, mirror.url)
    assert path == root / "cifar-10-binary.tar.gz"
    assert [file.name for file in root.iterdir()] == [path.name]
    assert len(open_dataset("cifar10").train.labels) == 100


def test_a_second_fetch_downloads_nothing(mirror, root):
    fetch("cifar10", None, root, mirror.url)
    fetch("cifar10", None, root, mirror.url)
    assert len(mirror.ranges) == 1


def test_a_download_that_stopped_is_continued(mirror, root):
    mirror.stop_after = 50_000
    with pytest.raises(WorkError) as error:
        fetch("cifar10", None, root, mirror.url)
    assert "run 'fastarat data fetch cifar10' again to continue" in one_line(error)
    mirror.stop_after = None
    path = fetch("cifar10", None, root, mirror.url)
    assert mirror.ranges == [None, "bytes=50000-"]
    assert path.read_bytes() == mirror.content


def test_a_server_that_cannot_resume_sends_it_all_again(mirror, root, published):
    root.mkdir()
    (root / "cifar-10-binary.tar.gz.part").write_bytes(published[:1000])
    mirror.resumes = False
    assert fetch("cifar10", None, root, mirror.url).read_bytes() == published


def test_a_partial_file_that_is_already_whole_is_taken(mirror, root, published):
    root.mkdir()
    (root / "cifar-10-binary.tar.gz.part").write_bytes(published)
    assert fetch("cifar10", None, root, mirror.url).read_bytes() == published


def test_a_download_with_the_wrong_checksum_is_removed(mirror, root, published):
    mirror.content = published[:-1] + b"?"
    with pytest.raises(UserError) as error:
        fetch("cifar10", None, root, mirror.url)
    text = one_line(error)
    assert hashlib.md5(mirror.content).hexdigest() in text and hashlib.md5(published).hexdigest() in text
    assert list(root.iterdir()) == []


def test_without_a_network_it_says_where_the_file_goes(root):
    with pytest.raises(WorkError) as error:
        fetch("cifar10", None, root, "http://127.0.0.1:9/cifar.tar.gz")
    text = one_line(error)
    assert str(root / "cifar-10-binary.tar.gz") in text and "--source FILE" in text


def test_an_address_that_is_gone_is_named(mirror, root):
    gone = mirror.url.replace("cifar.tar.gz", "gone")
    with pytest.raises(WorkError) as error:
        fetch("cifar10", None, root, gone)
    assert gone in one_line(error) and "Not Found" in one_line(error)


def test_an_archive_on_this_machine_is_taken(published, root, tmp_path):
    path = fetch("cifar10", tmp_path / "made.tar.gz", root)
    assert path.read_bytes() == published and (tmp_path / "made.tar.gz").exists()


def test_another_file_on_this_machine_is_refused(published, root, tmp_path):
    (tmp_path / "other.tar.gz").write_bytes(b"other")
    with pytest.raises(UserError) as error:
        fetch("cifar10", tmp_path / "other.tar.gz", root)
    assert "other.tar.gz is not the published cifar-10-binary.tar.gz" in one_line(error)
    with pytest.raises(UserError) as error:
        fetch("cifar10", tmp_path / "absent.tar.gz", root)
    assert "absent.tar.gz does not exist" in one_line(error)


def test_a_damaged_archive_in_the_root_is_named(published, root):
    root.mkdir()
    (root / "cifar-10-binary.tar.gz").write_bytes(published[:100])
    with pytest.raises(UserError) as error:
        fetch("cifar10", None, root)
    assert "remove it and run 'fastarat data fetch cifar10' again" in one_line(error)


def test_a_root_that_cannot_be_written_is_named(published, root, tmp_path):
    root.write_text("a file, not a folder")
    with pytest.raises(WorkError) as error:
        fetch("cifar10", tmp_path / "made.tar.gz", root)
    assert "cannot write" in one_line(error)


def test_only_the_cifar_sets_are_fetched_and_only_over_http(root):
    with pytest.raises(UserError) as error:
        fetch("cifar11", None, root)
    assert "did you mean 'cifar10'" in one_line(error)
    with pytest.raises(UserError) as error:
        fetch("cifar10", None, root, "file:///etc/passwd")
    assert "use --source FILE" in one_line(error)


@pytest.mark.parametrize("length", ["", "many", "-5", "9" * 5000])
def test_a_length_that_is_no_number_is_not_believed(mirror, root, monkeypatch, length):
    real = Mirror.send_header
    monkeypatch.setattr(
        Mirror, "send_header", lambda self, name, value: real(self, name, length if name == "Content-Length" else value)
    )
    try:
        assert fetch("cifar10", None, root, mirror.url).read_bytes() == mirror.content
    except WorkError as error:
        assert "\n" not in str(error)


def test_a_server_that_sends_without_end_is_left(mirror, root, monkeypatch):
    monkeypatch.setattr("fastarat.data.tools.fetch.MOST_BYTES", 1000)
    with pytest.raises(WorkError) as error:
        fetch("cifar10", None, root, mirror.url)
    assert "sends more than 1,000 bytes" in one_line(error)


@pytest.mark.parametrize("kind", ["link", "FIFO"])
def test_an_unfinished_download_that_is_no_file_is_left_alone(mirror, root, tmp_path, kind):
    root.mkdir()
    part = root / "cifar-10-binary.tar.gz.part"
    (tmp_path / "precious").write_text("mine")
    part.symlink_to(tmp_path / "precious") if kind == "link" else os.mkfifo(part)
    with pytest.raises(UserError) as error:
        fetch("cifar10", None, root, mirror.url)
    assert str(part) in one_line(error) and (tmp_path / "precious").read_text() == "mine"


def test_an_address_that_is_none_is_one_line(root):
    with pytest.raises(WorkError) as error:
        fetch("cifar10", None, root, "http://[")
    assert "cannot download http://[" in one_line(error)
