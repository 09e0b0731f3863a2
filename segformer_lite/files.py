"""Files that are whole or not there: written beside their place, then renamed. Below all rooms, which may import it."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import get_native_id

from safetensors import SafetensorError


@contextmanager
def writing(path: str | Path, then: str = "what was there before is whole") -> Iterator[None]:
    """Raises OSError in one line, which `then` ends, where `path` cannot be written: the disk is full, for one."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        if isinstance(error, OSError) and error.errno is None:  # not from the system, and said for people already
            raise
        reason = getattr(error, "strerror", None) or error
        raise OSError(f"cannot write {path} ({reason}): make room there or choose another folder; {then}") from None


@contextmanager
def beside(path: str | Path, shared: bool = False) -> Iterator[Path]:
    """The file to write in place of `path`, which it becomes once it is whole, in a folder made if need be.

    A crash leaves the old file or the new one, never half of one. Arguments: `shared`: another process or thread may
    write the same `path` at this moment, so each writes under a name of its own. Raises OSError as `writing` does.
    """
    path = Path(path)
    part = path.with_name(f"{path.name}.{get_native_id()}.part" if shared else f"{path.name}.part")
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield part
            part.replace(path)
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file, UTF-8; raises OSError as `writing` does."""
    with beside(path) as part:
        part.write_text(text, encoding="utf-8")
