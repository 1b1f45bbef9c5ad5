"""Downloads of the published CIFAR archives: resumed where they stopped, checked before they are used."""

import http.client
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fastarat.common import console
from fastarat.common.errors import UserError, WorkError, unknown
from fastarat.common.files import require_file, write_atomically
from fastarat.data.formats import cifar
from fastarat.data.images.damaged import writable

BLOCK = 1 << 20
TIMEOUT_SECONDS = 30
MOST_BYTES = 1 << 30
"""of an archive; CIFAR's have 170 MB"""


def fetch(name: str, source: Path | None, root: Path, url: str | None = None) -> Path:
    """Bring the archive of `name` ('cifar10', 'cifar100') into `root`, and return its path.

    It comes from the file `source`, or from `url` (default: the published address). An unfinished
    download is kept as `.part` and continued. Raises `UserError` for a wrong checksum, `WorkError` if
    the network or the disk fails.
    """
    if name not in cifar.ARCHIVES:
        raise unknown("data set to fetch", name, cifar.ARCHIVES)
    archive = cifar.ARCHIVES[name]
    target = root / archive.filename
    if target.exists():
        cifar.require_checksum(target, archive)
        return target
    with writable(target, "check the disk"):
        root.mkdir(parents=True, exist_ok=True)
        if source is not None:
            _require_published(source, archive)
            write_atomically(target, lambda temporary: shutil.copyfile(source, temporary))
        else:
            part = target.with_name(target.name + ".part")
            _download(url or archive.url, part, target, name)
            try:
                cifar.require_checksum(part, archive)
            except UserError:
                part.unlink()  # complete but wrong: continuing it could never make it right
                raise
            part.replace(target)
    return target


def _require_published(source: Path, archive: cifar.Archive) -> None:
    """As `require_checksum`, for a file of the caller's, which stays where it is."""
    top = ""
    try:
        cifar.require_checksum(source, archive, f"give --source a copy of {archive.url}, or leave it out")
    except UserError:
        with suppress(UserError):
            top = cifar.top_folder(source)
        cifar.require_not_python(source, top)
        raise


def _download(url: str, part: Path, target: Path, name: str) -> None:
    """Append to `part` what is missing of `url`."""
    if not url.startswith(("http://", "https://")):
        raise UserError(f"{url!r} is not an http(s) address; for a file on this machine use --source FILE")
    have = _size(part)
    with _reaching(url, target, name):
        request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
        try:
            response = urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)
        except urllib.error.HTTPError as error:
            if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and have:
                return  # nothing is left to send; the checksum tells whether it is right
            raise
        with response:
            start = have if response.status == http.HTTPStatus.PARTIAL_CONTENT else 0
            _receive(response, part, start, name)


def _size(part: Path) -> int:
    """The bytes that are there already. Raises `UserError` for what this program cannot have left."""
    if part.is_symlink():
        raise UserError(f"{part} is a symbolic link, which is not followed: remove it")
    if not part.exists():
        return 0
    require_file(part)
    return part.stat().st_size


def _receive(response: http.client.HTTPResponse, part: Path, start: int, name: str) -> None:
    length = response.headers.get("Content-Length", "")
    total = start + int(length[:20]) if length.isascii() and length.isdigit() else None
    received = start
    with part.open("ab" if start else "wb") as file, console.progress(f"Downloading {name}", total) as advance:
        advance(start)
        while block := response.read(BLOCK):
            file.write(block)
            received += len(block)
            if received > MOST_BYTES:
                raise WorkError(f"{response.url} sends more than {MOST_BYTES:,} bytes, which is no CIFAR: try again")
            advance(len(block))
    if total is not None and received < total:
        raise http.client.IncompleteRead(b"", total - received)


@contextmanager
def _reaching(url: str, target: Path, name: str) -> Iterator[None]:
    try:
        yield
    except http.client.IncompleteRead as error:
        raise WorkError(
            f"the download of {url} stopped with {error.expected} bytes missing: "
            f"run 'fastarat data fetch {name}' again to continue it"
        ) from error
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise WorkError(
            f"cannot download {url} ({reason}): run it again, or get the file elsewhere and put it at "
            f"{target} ('fastarat data fetch {name} --source FILE' does that and checks it)"
        ) from error
