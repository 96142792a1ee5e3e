"""A folder of results that are known by the content they were computed from.

A result lies in a file that is named by a digest of its source's content. So that the content need not be read each
time, a small record for each source keeps how the file looked (inode, size, times of modification and of change) when
its digest was computed. A record counts only if the file had been at rest for two seconds then: one that is written
twice within a tick of its file system's clock looks the same before and after.

Several processes, users and machines may use a folder at once: files are renamed into place whole, are never changed,
and may be removed at any time. Nothing in them is executed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dpipe.files import write_whole

log = logging.getLogger("dpipe")

AT_REST_NS = 2_000_000_000
KEPT_BYTES = 4 << 30
KEPT_SECONDS = 60 * 86_400
UNFINISHED_SECONDS = 86_400

Looks = list[int]


def cache_folder() -> Path | None:
    """``$DPIPE_CACHE_DIR`` (none, where that is empty), ``$XDG_CACHE_HOME/dpipe`` or ``~/.cache/dpipe``."""
    chosen = os.environ.get("DPIPE_CACHE_DIR")
    if chosen is not None:
        return Path(chosen).expanduser() if chosen else None
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):  # as the XDG specification wants it
        base = os.path.expanduser("~/.cache")
    return Path(base, "dpipe") if os.path.isabs(base) else None


def looks_of(path: Path) -> Looks:
    """What a file looks like from outside.

    Raises:
        OSError: If there is none.
    """
    state = path.stat()
    return [state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns]


def digest_of(content: bytes) -> str:
    """Names a content."""
    return hashlib.sha256(content).hexdigest()  # processors have instructions for it: twice as fast as BLAKE2


class Cache:
    """Results of one kind in a folder.

    Args:
        folder: Made when something is stored.
        kind: Names the results' kind and format; those of another format are never found.
    """

    def __init__(self, folder: Path, kind: str) -> None:
        self.folder = folder
        self.kind = kind

    def entry(self, digest: str, size: int) -> Path:
        """Where the result for a content of this digest and size is, or would be."""
        return self.folder / f"{self.kind}-{size}-{digest}.arrays"

    def has_size(self, size: int) -> bool:
        """Whether there is a result for any content of this size."""
        return any(self.folder.glob(f"{self.kind}-{size}-*.arrays"))

    def known_digest(self, source: Path, since_ns: int | None = None) -> str | None:
        """The digest of a file's content, if that is known without reading it.

        Args:
            source: The file.
            since_ns: A record made after this time counts, even if the file was not at rest.
        """
        try:
            record = json.loads(self._record(source).read_bytes())
            looks, read_ns, digest = record["looks"], record["read_ns"], record["digest"]
            at_rest = max(looks[2:]) + AT_REST_NS <= read_ns or (since_ns is not None and since_ns <= read_ns)
            return str(digest) if at_rest and looks == looks_of(source) else None
        except (OSError, ValueError, TypeError, KeyError):  # there is none, or it is none of ours
            return None

    def remember(self, source: Path, looks: Looks, digest: str, read_ns: int) -> None:
        """Records that a file that looked like this had a content of this digest.

        Args:
            source: The file.
            looks: Before and after it was read.
            digest: Of its content.
            read_ns: A time before it was read.

        Raises:
            OSError: If that does not work.
        """
        record = {"file": os.path.realpath(source), "looks": looks, "digest": digest, "read_ns": read_ns}
        write_whole(self._record(source), json.dumps(record))

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Lets one process at a time in, where the file system can tell; without the folder, or so, lets all in."""
        with contextlib.ExitStack() as stack:
            try:
                import fcntl

                self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                lock = stack.enter_context((self.folder / "lock").open("ab"))
                fcntl.flock(lock, fcntl.LOCK_EX)
            except (ImportError, OSError) as error:
                log.debug("%s: works without a lock: %s", self.folder, error)
            yield

    def use(self, entry: Path) -> None:
        """Marks a result as used now."""
        with contextlib.suppress(OSError):
            os.utime(entry)

    def sweep(self, keep: Path) -> None:
        """Removes what was not used for long, then the oldest results of too many, and what crashes left behind.

        Args:
            keep: A result that stays in any case.
        """
        now = time.time()
        results = []
        for path in self.folder.glob("*"):
            with contextlib.suppress(OSError):  # another process may be sweeping too
                state = path.stat()
                age = now - state.st_mtime
                unfinished = path.name.startswith(".")
                if unfinished and age > UNFINISHED_SECONDS:
                    path.unlink()
                elif not unfinished and path.suffix in (".arrays", ".known") and path != keep:
                    if age > KEPT_SECONDS:
                        path.unlink()
                    elif path.suffix == ".arrays":
                        results.append((age, state.st_size, path))
        total = keep.stat().st_size
        for _, size, path in sorted(results):
            total += size
            if total > KEPT_BYTES:
                with contextlib.suppress(OSError):
                    path.unlink()

    def _record(self, source: Path) -> Path:
        name = hashlib.blake2b(os.fsencode(os.path.realpath(source)), digest_size=20).hexdigest()
        return self.folder / f"{name}.known"
