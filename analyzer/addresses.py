"""Inputs by path or by address (`s3://bucket/day/`, `gs://`, `abfs://` and whatever else fsspec knows). Rule:
lists them and brings their bytes; what the bytes mean is for others to say.

fsspec is an extra, and so is what speaks to each kind of store; a path needs neither.
"""

from __future__ import annotations

import io
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from analyzer import store as tables
from analyzer import waiting
from analyzer.capture.offline import read_capture, source_names
from analyzer.choice import ALL, Choice, choose, with_unread
from analyzer.errors import AnalyzerError, CaptureError, LiveError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from analyzer.capture.reading import Early
    from analyzer.capture.streams import Progress
    from analyzer.choice import Unread
    from analyzer.rows import OneWay

_BUFFER = 8 << 20  # bytes asked of a store at once
_FOOTER = 64 << 10  # bytes asked of a store at least, where only some of a file are wanted
_HEAD = 64  # bytes that tell what a file is
#: how long S3 may keep silent, s: of themselves its libraries wait five times five times 15 s, with these
#: three times two times 10 s. What was configured for fsspec stands, and so does AWS_MAX_ATTEMPTS.
_S3 = {"connect_timeout": 5, "read_timeout": 10}
_S3_ATTEMPTS = 2
_S3_RETRIES = 3
_PEEKS = 32  # objects whose first bytes are asked for at a time


class Input(NamedTuple):
    """A capture, a flow file or a part. `kind`: as :func:`analyzer.store.kind_of` has it; `size`: bytes, 0
    where not known; `unread`: how many parts of its sources were left out beside it by choice; `given`: the
    path or address as it was given, or found below what was.
    """

    address: str
    kind: str
    size: int
    unread: Unread = ()
    given: str = ""


def is_address(given: str | os.PathLike[str]) -> bool:
    """Whether it is an address rather than a path."""
    return "://" in str(given)


def find_inputs(given: Sequence[str | Path], choice: Choice = ALL) -> list[Input]:
    """Files as they are, folders as the captures, flow files and parts in them, by name; each once, and none
    of which another part says that it took its place.

    Paths become absolute, since a worker may stand in another folder. Parts that recorded nothing in the
    choice's time are left out; compacted ones not even opened. Raises CaptureError where one is missing,
    where a folder holds none, where nothing was recorded in the time, and for standard input, which cannot be
    read elsewhere; LiveError where what speaks to a store is not installed.
    """
    tables.refuse_none(given)
    beyond = tables.Beyond(choice)
    once: dict[str, Input] = {}
    for each in given:
        for one in _listed(str(each), beyond) if is_address(each) else _local(each, beyond):
            once.setdefault(_identity(one), one)
    found = list(once.values())
    gone = tables.replaced_among(found, _name, _replaces, _content_id)
    kept = tables.selected([one for one in found if one not in gone], _notes, beyond)
    return [one._replace(unread=unread) for one, unread in kept]


def _local(given: str | Path, beyond: tables.Beyond) -> list[Input]:
    if str(given) == "-":
        raise CaptureError(
            "standard input cannot be read by workers", where="-", next_step="write it to a file first"
        )
    return [
        Input(os.path.abspath(path), tables.kind_of(path), _size(path), given=str(path))
        for path in tables.listed([given], beyond)
    ]


def _identity(one: Input) -> str:
    """The same for what is one file of this machine, by whichever path or address."""
    path = one.address.removeprefix("file://")
    return one.address if is_address(path) else os.path.realpath(path)


def _name(one: Input) -> str:
    return one.address.rpartition("/")[2]


def _replaces(one: Input) -> list[tuple[str, str]]:
    """Names and content ids of the parts whose place it takes."""
    with _anywhere(one.address) as source:
        return tables.replaces_in(source, one.address)


def _content_id(one: Input) -> str:
    if not is_address(one.address):
        return tables.content_id(Path(one.address))
    with opened(one.address) as stream:
        return tables.digest(stream)


def _notes(one: Input) -> tables.Notes | None:
    if one.kind != "parquet":
        return None
    with _anywhere(one.address) as source:
        return tables.notes_in(source, one.address)


def interval_of(found: Sequence[Input]) -> int:
    """The longest interval of the tables that captures are among, in which these are to be cut, ns; 0 for
    none.
    """
    if all(one.kind in tables.FLOW_FILES for one in found):
        return 0
    with ThreadPoolExecutor(_PEEKS) as threads:
        return max(threads.map(_interval, (one for one in found if one.kind == "parquet")), default=0)


def _interval(one: Input) -> int:
    with _anywhere(one.address) as source:
        return tables.interval_in(source, one.address)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


# ---- reading ----


class Source(NamedTuple):
    """An input and, for a capture, what it is called."""

    input: Input
    name: str


def sources(found: Sequence[Input]) -> list[Source]:
    """Captures first, each with the name that :func:`analyzer.store.read_inputs` gives it."""
    captures = [one for one in found if one.kind not in tables.FLOW_FILES]
    names = source_names([one.given for one in captures])
    rest = [one for one in found if one.kind in tables.FLOW_FILES]
    return [*map(Source, captures, names), *(Source(one, "") for one in rest)]


def read(source: Source, interval: int = 0, choice: Choice = ALL) -> OneWay:
    """One input as one-way rows, and of them those that are chosen; in one thread, since others read other
    inputs meanwhile. Raises CaptureError with its address where it cannot be read.
    """
    address, unread = source.input.address, source.input.unread
    if not is_address(address) and not os.path.exists(address):
        raise CaptureError(
            "is not there where it is read",
            where=address,
            next_step="workers read paths themselves: give a folder that all of them have, or an address",
        )
    if choice and is_address(address) and source.input.kind == "parquet":
        with _anywhere(address) as stream:
            part = tables.part_in(stream, address, choice)
        if part is not None:
            return with_unread(choose(part[0], choice, part[1]), unread)
    with local_copy(address) as path:
        try:
            if source.name:
                return choose(read_capture(path, source.name, interval, threads=1), choice)
            return tables.read_chosen(path, choice, unread)
        except AnalyzerError as error:
            raise type(error)(error.what, where=address, next_step=error.next_step) from error


def read_inputs(
    given: Sequence[str | Path],
    *,
    interval: int = 0,
    progress: Progress = lambda _: None,
    threads: int | None = None,
    choice: Choice = ALL,
    early: Early | None = None,
) -> OneWay:
    """As :func:`analyzer.store.read_inputs`, and addresses too."""
    if not any(map(is_address, given)):
        return tables.read_inputs(
            given, interval=interval, progress=progress, threads=threads, choice=choice, early=early
        )
    adding, workers = tables.Adding(), threads or os.cpu_count() or 1
    found = find_inputs(given, choice)
    step = interval or interval_of(found)
    with ThreadPoolExecutor(workers) as pool:
        for part in tables.ahead(pool, lambda one: read(one, step, choice), sources(found), 2 * workers):
            adding.add(part)
    return tables.chosen_of_all(adding.whole(), choice)


# ---- stores ----


def _listed(address: str, beyond: tables.Beyond) -> list[Input]:
    with _told(address), waiting.told(address):
        store, place = _store(address)
        store.invalidate_cache()  # of listings, which the process keeps: others write there meanwhile
        file = _file(store, place)
        if file is not None:
            sizes = {place: file["size"]}
        else:
            details = store.find(place, detail=True)
            # a link may lead to a file, to a folder or nowhere, and a pipe is no file
            files = [
                name for name in sorted(details) if details[name]["type"] == "file" or store.isfile(name)
            ]
            sizes = {name: details[name]["size"] for name in files}
        # an empty object is none of them, and has no first bytes to ask for
        shown = [name for name in sizes if sizes[name] != 0 and not _is_hidden(name, place)]
        shown = [name for name in shown if not beyond.has(name)]
        with ThreadPoolExecutor(_PEEKS) as threads:
            kinds = list(threads.map(lambda name: _kind(store.cat_file(name, start=0, end=_HEAD)), shown))
    found = [
        Input(whole := store.unstrip_protocol(name), kind, int(sizes[name] or 0), given=whole)
        for name, kind in zip(shown, kinds, strict=True)
        if kind
    ]
    if not (found or beyond.parts):
        raise CaptureError(
            "no capture and no flow file at this address",
            where=address,
            next_step="give the address of a pcap, pcapng or Parquet file, or of a folder with some",
        )
    return found


def _file(store: Any, place: str) -> dict[str, Any] | None:
    """What a store says of a file, None where it is none; as `isfile`, for which no answer is an answer."""
    try:
        found: dict[str, Any] = store.info(place)
    except (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError):
        return None
    return found if found["type"] == "file" else None


def _kind(head: bytes) -> str:
    """What a file is that begins with these bytes."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(head)
        file.flush()
        return tables.kind_of(Path(file.name))


def _is_hidden(name: str, below: str) -> bool:
    return any(part.startswith(".") for part in name.removeprefix(below).split("/"))


@contextmanager
def local_copy(address: str) -> Iterator[Path]:
    """A file of this machine with the same bytes and the same name, for as long as it is needed; a path is
    that file itself.
    """
    if not is_address(address):
        yield Path(address)
        return
    with tempfile.TemporaryDirectory(prefix="rke2-flows-") as folder:
        copy = Path(folder) / (Path(address).name or "input")
        with opened(address) as source, copy.open("wb") as target:
            while block := _block(source, address):
                target.write(block)
        yield copy


def _block(source: IO[bytes], address: str) -> bytes:
    with waiting.told(address):
        return source.read(_BUFFER)


@contextmanager
def opened(address: str) -> Iterator[IO[bytes]]:
    """The bytes at an address, buffered, from the first on. Raises CaptureError where they cannot be read."""
    with _told(address), waiting.told(address):
        store, place = _store(address)
        raw = store.open(place, "rb", block_size=_BUFFER, cache_type="readahead")
    with _told(address), io.BufferedReader(raw) as stream:
        yield stream


@contextmanager
def _anywhere(address: str) -> Iterator[Path | IO[bytes]]:
    """A path as it is, an address as a stream of which only what is asked for is brought."""
    if not is_address(address):
        yield Path(address)
        return
    with _told(address):
        store, place = _store(address)
        with store.open(place, "rb", block_size=_FOOTER, cache_type="readahead") as stream:
            yield stream


def put(path: Path, address: str) -> None:
    """Copies a file of this machine to a path or an address, in one step where the store can."""
    with _told(address, "written", "check the address and the rights"), waiting.told(address):
        store, place = _store(address)
        store.put_file(str(path), place)


def is_empty(folder: str) -> bool:
    """Whether nothing is in a folder yet, or no such folder is there."""
    with _told(folder, "read", "check the address and the rights"), waiting.told(folder):
        store, place = _store(folder)
        store.invalidate_cache()
        return not store.exists(place) or not store.find(place)


def make_folder(folder: str) -> None:
    """Makes a folder where there is none; a store that has no folders makes nothing."""
    with _told(folder, "written", "check the place and the rights"), waiting.told(folder):
        store, place = _store(folder)
        store.makedirs(place, exist_ok=True)


def _store(address: str) -> tuple[Any, str]:
    try:
        from fsspec.core import get_filesystem_class, split_protocol, url_to_fs  # noqa: PLC0415  an extra
    except ImportError as error:
        raise LiveError(
            "fsspec, which reads addresses, is not installed",
            where=address,
            next_step="pip install 'rke2-flows[cluster]'",
        ) from error
    if is_address(address.rpartition("::")[2]):
        store, place = url_to_fs(address, **_patience(address))
    else:  # `::` as in an IPv6 address is no chain of fsspec's
        kind = get_filesystem_class(split_protocol(address)[0] or "file")
        ways = kind._get_kwargs_from_urls(address) | _patience(address)
        store, place = kind(**ways), kind._strip_protocol(address)
    if _is_s3(address):
        store.retries = _S3_RETRIES
    return store, str(place)


def _is_s3(address: str) -> bool:
    return address.startswith(("s3://", "s3a://"))


def _patience(address: str) -> dict[str, Any]:
    """How long a store may keep silent, for what speaks to it."""
    if not _is_s3(address):
        return {}
    from fsspec.config import conf  # noqa: PLC0415  an extra

    attempts = {} if "AWS_MAX_ATTEMPTS" in os.environ else {"retries": {"total_max_attempts": _S3_ATTEMPTS}}
    return {"config_kwargs": _S3 | attempts | conf.get("s3", {}).get("config_kwargs", {})}


@contextmanager
def _told(
    address: str, done: str = "read", advice: str = "check the address, the rights and the network"
) -> Iterator[None]:
    """What a store raises, as AnalyzerError. Each has errors of its own, so all that are errors count."""
    try:
        yield
    except AnalyzerError:
        raise
    except ImportError as error:
        raise LiveError(
            f"what speaks to this store is not installed: {error}",
            where=address,
            next_step="install it beside rke2-flows, here and on the workers: s3fs for s3://, gcsfs for "
            "gs://, adlfs for abfs://",
        ) from error
    except FileNotFoundError as error:
        raise CaptureError("there is nothing at this address", where=address, next_step=advice) from error
    except Exception as error:
        words = " ".join(str(error).split()) or type(error).__name__
        raise CaptureError(f"cannot be {done}: {words}", where=address, next_step=advice) from error
