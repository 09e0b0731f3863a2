"""From a server to the disk: tried again where the network fails, taken up where it was cut, never half there."""

import http.client
import io
import os
import random
import shutil
import ssl
import threading
import zipfile
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from PIL import Image
from tqdm.auto import tqdm

from ...files import beside
from ..base import UNREADABLE

NETWORK = (URLError, http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError)
BROKEN_ZIP = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError)  # the last one: encrypted, or packed strangely
THREADS = 16
TRIES = 5
PAUSE = 0.5  # seconds before the second try, doubled before each further one
TIMEOUT = 30  # seconds without a byte
GIVE_UP = 32  # so many failures in a row are no accident
LARGEST_PICTURE = 20_000_000  # bytes


class Unfetched(ValueError):
    """A file that did not come, or not as it should be; the message says why."""


class Picture(NamedTuple):
    """The address of one picture, the place it goes to, and its (width, height)."""

    address: str
    path: Path
    size: tuple[int, int]

    @property
    def name(self) -> str:
        return f"{self.path.parent.name}/{self.path.name}"


def connect(address: str, headers: dict[str, str] | None = None, method: str = "GET"):
    """The open answer of a server; raises one of NETWORK."""
    request = Request(address, headers={"User-Agent": "segformer-lite", **(headers or {})}, method=method)
    return urlopen(request, timeout=TIMEOUT)


def reason(error: Exception) -> str:
    """What went wrong between us and a server, in a few words."""
    if isinstance(error, HTTPError):
        return f"the server answered {error.code} {error.reason}"
    return str(error.reason if isinstance(error, URLError) else error) or type(error).__name__


def persist(attempt: Callable, stop: threading.Event | None = None):
    """What `attempt()` gives, tried again after growing pauses; Unfetched when that keeps failing or cannot help."""
    stop = stop or threading.Event()
    for number in range(TRIES):
        try:
            return attempt()
        except (Unfetched, *NETWORK) as error:
            refused = isinstance(error, HTTPError) and error.code < 500 and error.code not in (408, 429)
            pause = PAUSE * 2**number * random.uniform(0.5, 1.5)  # not all threads at the same moment
            if refused or number + 1 == TRIES or stop.wait(pause):
                raise Unfetched(reason(error)) from None


def write(path: Path, content: bytes) -> None:
    """Write a file that is whole or not there."""
    with beside(path) as part:
        part.write_bytes(content)


def require_room(folder: Path, size: int, what: str) -> None:
    """Raises ValueError where the disk of a folder, made or not, has less than `size` bytes free."""
    place = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    free = shutil.disk_usage(place).free
    if free < size:
        raise ValueError(f"no room for {what}: {readable(size)} are needed, {readable(free)} are free in {place}")


def readable(size: int) -> str:
    """A number of bytes for people."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


# ---- one large file ----


def fetch_file(address: str, path: Path, check: Callable[[Path], None], progress: bool = False) -> None:
    """Fetch a file; what an earlier try left in PATH.part is kept, and the rest alone is asked for.

    `check` raises `Unfetched` for a file that is not as it should be. Raises `Unfetched` when no try succeeds.
    """
    part = path.with_name(path.name + ".part")

    def attempt() -> None:
        if part.exists():
            try:  # whole already: cut before it was renamed, or by a server that announced more than it has
                return check(part)
            except Unfetched:
                pass
        _append(address, part, progress)
        try:
            check(part)
        except Unfetched:
            part.unlink()  # as long as announced, and wrong: going on from it would not help
            raise

    try:
        persist(attempt)
    except Unfetched as error:
        raise Unfetched(f"{address} did not come ({error}): run the same command again, it goes on from here") from None
    os.replace(part, path)


def _append(address: str, part: Path, progress: bool) -> None:
    """Add to a file what it lacks; all of it where the server sends no rests."""
    have = part.stat().st_size if part.exists() else 0
    try:
        response = connect(address, {"Range": f"bytes={have}-"} if have else {})
    except HTTPError as error:
        if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            part.unlink()
            raise Unfetched("the server's file is shorter than what came of it before") from None
        raise
    with response:
        partial = response.status == http.client.PARTIAL_CONTENT
        if partial and not (response.headers["Content-Range"] or "").startswith(f"bytes {have}-"):
            part.unlink()
            raise Unfetched("the server sent another part than the one asked for")
        start = have if partial else 0
        length = response.headers["Content-Length"]
        total = start + int(length) if length else None
        bar = tqdm(total=total, initial=start, unit="B", unit_scale=True, desc=part.stem, disable=not progress)
        with open(part, "ab" if partial else "wb") as file, bar:
            while chunk := response.read(1 << 20):
                file.write(chunk)
                bar.update(len(chunk))
    if total is not None and part.stat().st_size != total:
        raise Unfetched(f"cut after {part.stat().st_size:,} of {total:,} bytes")


# ---- many pictures ----


def fetch_pictures(pictures: list[Picture], progress: bool = False) -> dict[str, str]:
    """Fetch pictures, many at a time; gives why the ones that failed did, by name.

    Raises ValueError where one after the other fails: then it is the network, and the rest is not tried.
    """
    failed, in_a_row, stop = {}, 0, threading.Event()
    with ThreadPoolExecutor(THREADS) as pool:
        running = {pool.submit(_fetch_picture, picture, stop): picture for picture in pictures}
        try:
            bar = tqdm(as_completed(running), total=len(running), unit="img", desc="pictures", disable=not progress)
            for done in bar:
                try:
                    done.result()
                    in_a_row = 0
                except Unfetched as error:
                    failed[running[done].name] = str(error)
                    in_a_row += 1
                    if in_a_row == GIVE_UP:
                        advice = "what came before is kept; look after the network, then run the same command again"
                        raise ValueError(f"{GIVE_UP} pictures in a row failed ({error}): {advice}") from None
        except BaseException:  # Ctrl-C and a full disk as well: begin no more of them
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return failed


def _fetch_picture(picture: Picture, stop: threading.Event) -> None:
    def attempt() -> bytes:
        with connect(picture.address) as response:
            body = response.read(LARGEST_PICTURE)
            length = response.headers["Content-Length"]
        if length and len(body) != int(length):
            raise Unfetched(f"cut after {len(body):,} of {int(length):,} bytes")
        _require_picture(body, picture.size)
        return body

    write(picture.path, persist(attempt, stop))


def _require_picture(body: bytes, size: tuple[int, int]) -> None:
    """Raises Unfetched where the bytes are no whole picture of this (width, height)."""
    try:
        with Image.open(io.BytesIO(body)) as picture:
            picture.load()
    except Image.UnidentifiedImageError:
        begin = body[:20].decode("ascii", "replace")
        raise Unfetched(f"what came is no picture, it begins with {begin!r}") from None
    except UNREADABLE as error:
        raise Unfetched(f"what came cannot be decoded: {error}") from None
    if picture.size != size:
        seen, wanted = "{}x{}".format(*picture.size), "{}x{}".format(*size)
        raise Unfetched(f"what came is {seen} pixels, the annotations say {wanted}")


def is_there(picture: Picture) -> bool:
    """Whether a picture is on disk, by its size and the mark that ends a JPEG; without the mark, by decoding it."""
    try:
        with open(picture.path, "rb") as file, Image.open(file) as found:
            file.seek(-2, os.SEEK_END)
            if found.size == picture.size and file.read() == b"\xff\xd9":
                return True
        _require_picture(picture.path.read_bytes(), picture.size)
        return True
    except (Unfetched, *UNREADABLE):
        return False
