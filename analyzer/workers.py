"""One run on many workers, with Dask. Rule: makes tasks of the other rooms' functions, and says which worker
hands what to which; decides nothing about flows, and takes to this process only what was added up.

    inputs → read and deal (a task for each group of inputs) → gather (one for each share) → outline, of all
           → pair, judge, write, tally (one for each share) → one tally → findings

Tasks have no side effect but files that are written whole or not at all under a name of their share: one that
runs twice, since its worker died, changes nothing.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analyzer import addresses, clocks, overview, shares
from analyzer.choice import ALL, Choice, nothing_recorded
from analyzer.cluster import Cluster, load_cluster
from analyzer.errors import CaptureError, LiveError
from analyzer.overview import Overview, Tally
from analyzer.rows import Coverage, fold
from analyzer.spec import DEFAULT_SPEC, Spec, load_spec, server_ports
from analyzer.store import write_flows
from analyzer.verdict import judge
from analyzer.version import analyzer_version
from analyzer.watch import Watch, begun

if TYPE_CHECKING:
    import pandas as pd

    from analyzer.addresses import Source
    from analyzer.shares import Outline, Share

#: called with how many tasks are done, and how many there are
Progress = Callable[[int, int], None]

TASKS_A_WORKER = 4  # groups of inputs and shares for each thread of a worker
LEAST_BYTES = 1 << 20  # of inputs for each share, where there are more shares than threads
GROUP_BYTES = 64 << 20  # of inputs in a group, where it is more than one
MAX_SHARES = 256  # a group hands something to each share: the number of messages is their product
FAN_IN = 8  # partial results that one task adds up
TIMEOUT = 10  # s, in which a scheduler must answer and have a worker
ANSWER = 30.0  # s, in which a worker must say what it has installed
TTL = "60s"  # after which a process of ours that says nothing is ended, and another one started
RETRIES = 2  # of a task that fails, as a read over a network may

SCHEDULERS = ("threads", "processes", "tcp://HOST:PORT")
_INSTALL = "pip install 'rke2-flows[cluster]', here and on every worker, all of one version"


@dataclass(frozen=True)
class _Plan:
    """What every task knows. `cluster`: None where nothing is judged. `folder`: where flows are written,
    empty for nowhere.
    """

    cluster: Cluster | None
    spec: Spec
    interval: int
    folder: str
    choice: Choice


def analyze(
    *inputs: str | Path,
    cluster: Cluster | str | Path,
    spec: Spec | str | Path = DEFAULT_SPEC,
    scheduler: str = "threads",
    interval: int = 0,
    folder: str | Path | None = None,
    choice: Choice = ALL,
    progress: Progress = lambda _, __: None,
) -> Overview:
    """As :func:`analyzer.analyze`, read and judged by workers: the same findings, matrices and sums.

    `inputs`: paths, which must be the same for all workers, and addresses. `scheduler`: `threads` of this
    process, `processes` of this machine, or the address of a Dask scheduler. `interval`: ns, 0 for none.
    `folder`: an empty or a new one, path or address, for the judged flows, a Parquet file for each share.
    `choice`: which rows of the inputs; parts that hold none are not handed out.
    Nodes cannot be inferred: a cluster must be given. Raises AnalyzerError where an input is at fault, and
    LiveError where a worker or the scheduler is.
    """
    whole = cluster if isinstance(cluster, Cluster) else load_cluster(cluster)
    rules = spec if isinstance(spec, Spec) else load_spec(spec)
    plan = _Plan(whole, rules, interval, _folder(folder), choice)
    total, coverage = _run(inputs, plan, scheduler, progress)
    return Overview(total, whole, rules, coverage)


def flows(
    *inputs: str | Path,
    folder: str | Path,
    spec: Spec | str | Path = DEFAULT_SPEC,
    scheduler: str = "threads",
    interval: int = 0,
    choice: Choice = ALL,
    progress: Progress = lambda _, __: None,
) -> tuple[int, tuple[Coverage, ...]]:
    """Inputs to flow tables in a folder, a Parquet file for each share. Returns how many flows they hold, and
    the ledgers. Arguments as for :func:`analyze`.
    """
    rules = spec if isinstance(spec, Spec) else load_spec(spec)
    plan = _Plan(None, rules, interval, _folder(folder), choice)
    count, coverage = _run(inputs, plan, scheduler, progress)
    return count, coverage


def _folder(given: str | Path | None) -> str:
    if given is None:
        return ""
    if str(given) == "-":
        raise CaptureError(
            "workers write a folder of flow tables, and standard output is none",
            where="--output",
            next_step="name an empty or a new folder with -o",
        )
    folder = str(given) if addresses.is_address(given) else os.path.abspath(given)
    if not addresses.is_empty(folder):
        raise CaptureError(
            "something is in this folder already",
            where=folder,
            next_step="give an empty or a new one: flows of two runs would add up",
        )
    return folder


def _run(
    inputs: Sequence[str | Path], plan: _Plan, scheduler: str, progress: Progress
) -> tuple[Any, tuple[Coverage, ...]]:
    found = addresses.find_inputs(inputs, plan.choice)
    plan = replace(plan, interval=plan.interval or addresses.interval_of(found))
    with _engine(scheduler) as engine:
        if plan.folder:
            addresses.make_folder(plan.folder)
        whole, coverage = engine.compute(_graph(addresses.sources(found), plan, engine.threads), progress)
    if plan.choice.timed and not (coverage or _flow_count(whole)):
        raise nothing_recorded()
    return whole, coverage


def _flow_count(whole: Tally | int) -> int:
    return whole if isinstance(whole, int) else whole.flows


# ---- tasks ----


def grouped(sizes: Sequence[int], threads: int) -> list[slice]:
    """Inputs in groups of about equal size, in their order: enough for all threads, and none larger than
    memory bears unless one input is.
    """
    limit = max(1, min(GROUP_BYTES, -(-sum(sizes) // (threads * TASKS_A_WORKER))))
    bounds, filled = [0], 0
    for place, size in enumerate(sizes):
        if filled and filled + size > limit:
            bounds.append(place)
            filled = 0
        filled += max(size, 1)
    return [slice(a, b) for a, b in zip(bounds, [*bounds[1:], len(sizes)], strict=True)]


def share_count(size: int, threads: int) -> int:
    """How many shares inputs of so many bytes are cut into."""
    wanted = max(threads * TASKS_A_WORKER, size // GROUP_BYTES)
    return max(1, min(wanted, max(threads, size // LEAST_BYTES), MAX_SHARES))


def _graph(sources: Sequence[Source], plan: _Plan, threads: int) -> Any:
    """The result as a Dask value: (total, or number of flows, and ledgers)."""
    from dask import delayed  # noqa: PLC0415  an extra

    sizes = [source.input.size for source in sources]
    groups = grouped(sizes, threads)
    count = share_count(sum(sizes), threads)
    known = delayed(plan, traverse=False)
    dealt = [delayed(_deal, nout=count, pure=False)(list(sources[of]), count, known) for of in groups]
    gathered = [delayed(_gather, pure=False)([parts[i] for parts in dealt], known) for i in range(count)]
    outlines = [delayed(shares.outline, pure=False)(share) for share in gathered]
    around = _tree(shares.merge_outlines, outlines)
    judged = [delayed(_judge, pure=False)(i, share, around, known) for i, share in enumerate(gathered)]
    whole = _tree(overview.merge if plan.cluster else sum, judged)
    return delayed(_total, pure=False)(whole, delayed(_ledgers, pure=False)(around), known)


def _tree(add: Callable[[list[Any]], Any], parts: list[Any]) -> Any:
    """Parts added up on the workers, a few at a time, in their order."""
    from dask import delayed  # noqa: PLC0415  an extra

    while len(parts) > 1:
        parts = [delayed(add, pure=False)(parts[i : i + FAN_IN]) for i in range(0, len(parts), FAN_IN)]
    return parts[0]


def _deal(sources: list[Source], count: int, plan: _Plan) -> list[Share]:
    ends = shares.Ends(plan.cluster)
    parts = (addresses.read(source, plan.interval, plan.choice) for source in sources)
    return shares.deal(fold(parts), count, ends)


def _gather(parts: list[Share], plan: _Plan) -> Share:
    return shares.gather(parts, plan.choice)


def _judge(number: int, share: Share, around: Outline, plan: _Plan) -> Tally | int:
    nodes = () if plan.cluster is None else plan.cluster.members
    table = shares.paired(share, around, server_ports(plan.spec), nodes)
    if plan.cluster is not None:
        table = judge(table, plan.cluster, plan.spec)
    if plan.folder:
        ledgers = clocks.told(share.rows.coverage, around.connections)
        _write(table, ledgers, around.interval, f"{plan.folder}/flows-{number:05d}.parquet")
    if plan.cluster is None:
        return len(table)
    return overview.tally(table, plan.cluster, plan.spec, around.ledgers)


def _write(table: pd.DataFrame, coverage: Sequence[Coverage], interval: int, place: str) -> None:
    """Each share's file has its part of the ledgers, so that all files together have the whole."""
    if not addresses.is_address(place):
        write_flows(table, place, coverage, interval)
        return
    with tempfile.TemporaryDirectory(prefix="rke2-flows-") as folder:
        path = Path(folder) / "flows.parquet"
        write_flows(table, path, coverage, interval)
        addresses.put(path, place)


def _ledgers(around: Outline) -> tuple[Coverage, ...]:
    return around.ledgers


def _total(whole: Any, coverage: tuple[Coverage, ...], plan: _Plan) -> tuple[Any, tuple[Coverage, ...]]:
    if plan.cluster is not None:
        whole = overview.total(whole, plan.cluster, plan.spec, coverage)
    return whole, coverage


# ---- who runs them ----


class _Threads:
    """Threads of the process that asks."""

    threads = os.cpu_count() or 1

    def compute(self, value: Any, progress: Progress) -> Any:
        from dask.callbacks import Callback  # noqa: PLC0415  an extra

        done = 0

        def told(_key: Any, _result: Any, _dsk: Any, state: Any, _worker: Any) -> None:
            nonlocal done
            done += 1
            progress(done, done + sum(len(state[name]) for name in ("ready", "running", "waiting")))

        with Callback(posttask=told):
            return value.compute(scheduler="threads", num_workers=self.threads)


class _Cluster:
    """Workers behind a scheduler."""

    def __init__(self, client: Any, where: str) -> None:
        self._client, self._where = client, where
        self.threads = max(1, sum(client.nthreads().values()))

    def compute(self, value: Any, progress: Progress) -> Any:
        from distributed.scheduler import KilledWorker  # noqa: PLC0415  an extra

        future = self._client.compute(value, retries=RETRIES)
        watch = Watch(self._client.scheduler, self._where)
        try:
            _follow(future, progress, watch)
            return future.result()
        except LiveError:  # it answers nobody, and so no wish to cancel either
            future = None
            raise
        except KilledWorker as error:
            raise LiveError(
                f"a task ended its workers, again and again: {str(error).splitlines()[0]}",
                next_step="most often memory: give workers more of it, or fewer threads each",
            ) from error
        finally:
            if future is not None:
                future.cancel()


def _follow(future: Any, progress: Progress, watch: Watch) -> None:
    """Tells how many tasks are done until the last one is."""
    from distributed.diagnostics.progressbar import ProgressBar  # noqa: PLC0415  an extra

    class Told(ProgressBar):  # type: ignore[misc]
        def _draw_bar(self, **counts: Any) -> None:
            watch.count(counts["remaining"])
            progress(counts["all"] - counts["remaining"], counts["all"])

    bar = Told([future], scheduler=future.client.scheduler.address, complete=True)

    async def followed() -> None:
        await watch.until(begun(bar.listen()))

    future.client.sync(followed)


@contextmanager
def _engine(scheduler: str) -> Iterator[_Threads | _Cluster]:
    _check_installed(scheduler)
    if scheduler == "threads":
        yield _Threads()
    elif scheduler == "processes":
        with _local_workers() as local, _connected(local) as client:
            yield _Cluster(client, local.scheduler_address)
    elif addresses.is_address(scheduler):
        with _connected(scheduler) as client:
            yield _Cluster(client, scheduler)
    else:
        raise CaptureError(
            f"no scheduler is called {scheduler!r}", next_step=f"give one of {', '.join(SCHEDULERS)}"
        )


def _check_installed(scheduler: str) -> None:
    try:
        import dask  # noqa: F401, PLC0415  an extra

        if scheduler != "threads":
            import distributed  # noqa: F401, PLC0415  an extra
    except ImportError as error:
        raise LiveError("Dask is not installed", next_step=_INSTALL) from error


@contextmanager
def _local_workers() -> Iterator[Any]:
    """A process for each core, on loopback; none is left behind.

    A terminal sends Ctrl-C to all of them; this process ends the workers, in order. So they are started, also
    those that take the place of others, by a thread that blocks it, and inherit that.
    """
    from multiprocessing import resource_tracker  # noqa: PLC0415  as LocalCluster

    import dask  # noqa: PLC0415  an extra
    from distributed import LocalCluster  # noqa: PLC0415  an extra

    resource_tracker.ensure_running()  # when it is started later, it unblocks that
    with _held() as held, dask.config.set({"distributed.scheduler.worker-ttl": TTL}):
        local = LocalCluster(
            n_workers=os.cpu_count(),
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            silence_logs=50,
        )
        with local:
            signal.pthread_sigmask(signal.SIG_SETMASK, held)
            try:
                yield local
            finally:  # half closed, the rest would be waited for at the end of the process
                signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})


@contextmanager
def _held() -> Iterator[Iterable[int]]:
    """Ctrl-C waits until this ends, and with it what this thread starts; gives what was held before."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield before
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _connected(scheduler: Any) -> Iterator[Any]:
    """A client of a scheduler that has workers with the same software as this process."""
    from distributed import CancelledError, Client  # noqa: PLC0415  an extra
    from distributed.comm import CommClosedError  # noqa: PLC0415  an extra

    where = scheduler if isinstance(scheduler, str) else "the local scheduler"
    _check_certificates(where)
    try:
        if isinstance(scheduler, str):
            with ThreadPoolExecutor(1) as apart:  # a notebook's thread has a loop that runs already
                apart.submit(asyncio.run, _shake_hands(scheduler)).result()
        client = Client(scheduler, timeout=TIMEOUT, set_as_default=False)
    except (OSError, ValueError) as error:  # a TimeoutError is an OSError
        raise LiveError(
            f"no Dask scheduler answers: {' '.join(str(error).split())}",
            where=where,
            next_step="start one with `dask scheduler`, and look whether the address and port are open",
        ) from error
    with _unlogged(), client:
        try:
            _check_workers(client, where)
            yield client
        except (CancelledError, CommClosedError) as error:
            raise LiveError(
                "the scheduler went away before all was done",
                where=where,
                next_step="look why it ended and whether the network holds, then run this again",
            ) from error


async def _shake_hands(scheduler: str) -> None:
    """Who takes a connection and says nothing would be waited for without end by Dask's own client."""
    from distributed.comm import connect  # noqa: PLC0415  an extra
    from distributed.security import Security  # noqa: PLC0415  an extra

    ways = Security().get_connection_args("client")
    try:
        comm = await asyncio.wait_for(connect(scheduler, timeout=TIMEOUT, **ways), TIMEOUT)
    except TimeoutError as error:
        words = f"it takes connections, and has said nothing for {TIMEOUT} s"
        raise TimeoutError(str(error) or words) from error
    await comm.close()


@contextmanager
def _unlogged() -> Iterator[None]:
    """What Dask logs of a connection that is lost, with tracebacks, is told in one line instead."""
    handlers = [(handler, handler.level) for handler in logging.getLogger("distributed").handlers]
    for handler, _ in handlers:
        handler.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for handler, level in handlers:
            handler.setLevel(level)


def _check_certificates(where: str) -> None:
    """A client that begins without them ends in a traceback, after a long wait."""
    from distributed.security import Security  # noqa: PLC0415  an extra

    try:
        if not where.startswith("tls://") or Security().get_connection_args("client")["ssl_context"]:
            return
        fault = "no certificates are set for TLS"
    except OSError as error:
        fault = f"the certificates for TLS cannot be read: {error.strerror or error}"
    raise LiveError(
        fault,
        where=where,
        next_step="set DASK_DISTRIBUTED__COMM__TLS__CA_FILE, and __CLIENT__CERT and __CLIENT__KEY beside it",
    )


def _check_workers(client: Any, where: str) -> None:
    try:
        client.wait_for_workers(1, timeout=TIMEOUT)
    except TimeoutError as error:
        raise LiveError(
            "the scheduler has no workers", where=where, next_step=f"start some with `dask worker {where}`"
        ) from error
    try:
        versions, silent = client.sync(_ask_workers, client)
    except Exception as error:
        raise LiveError(
            f"a worker cannot run rke2-flows: {' '.join(str(error).split())}", where=where, next_step=_INSTALL
        ) from error
    if silent:
        raise LiveError(
            f"a worker has said nothing for {ANSWER:.0f} s",
            where=silent[0],
            next_step="look whether it is stopped or out of memory, end it, and run this again",
        )
    own = analyzer_versions()
    for worker, theirs in sorted(versions.items()):
        apart = [
            f"{name} {theirs.get(name)} there, {own[name]} here"
            for name in own
            if theirs.get(name) != own[name]
        ]
        if apart:
            raise LiveError(
                f"a worker has other versions: {'; '.join(apart)}", where=worker, next_step=_INSTALL
            )


async def _ask_workers(client: Any) -> tuple[dict[str, dict[str, str]], list[str]]:
    """What :func:`analyzer_versions` says on each worker, and which of them do not answer."""
    names = sorted((await client.scheduler.identity(n_workers=-1))["workers"])
    asked = {name: begun(client._run(analyzer_versions, workers=[name])) for name in names}
    await asyncio.wait(asked.values(), timeout=ANSWER)
    silent = [name for name in names if not asked[name].done()]
    for name in silent:
        asked[name].cancel()
    return {name: asked[name].result()[name] for name in names if name not in silent}, silent


def analyzer_versions() -> dict[str, str]:
    """What two processes must have alike to hand values to each other."""
    named = {name: version(name) for name in ("dask", "distributed", "numpy", "pandas")}
    return {"rke2-flows": analyzer_version(), "python": "{}.{}".format(*sys.version_info), **named}
