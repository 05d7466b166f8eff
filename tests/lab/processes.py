"""Child processes.

Rule: starts, watches and ends the programs of one lab, each by its own pid; knows no port and no scenario.

A child is started through setpriv and nsenter, which become the program itself, so that its pid is the one to
end; it gets SIGKILL from the kernel should the thread that started it die first.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from typing import TYPE_CHECKING

from lab import kernel
from lab.errors import LabError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

GRACE = 3.0
"""Seconds between asking a child to end and ending it."""


class Child:
    """One running program; ``log`` is where its error output goes."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], log: Path) -> None:
        self.name = name
        self.process = process
        self.log = log

    @property
    def pid(self) -> int:
        return self.process.pid

    def said(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def alive(self) -> bool:
        return self.process.poll() is None

    def fault(self, what: str) -> LabError:
        """An error that carries the end of what the program said."""
        return LabError(f"{self.name}: {what}: {self.said()[-600:].strip() or '(it said nothing)'}")

    def wait_for(self, holds: Callable[[], bool], what: str, seconds: float = 20.0) -> None:
        """Wait until ``holds()``; a program that ends meanwhile, or takes too long, is an error."""
        deadline = time.monotonic() + seconds
        while not holds():
            if not self.alive():
                raise self.fault(f"ended with status {self.process.returncode} before {what}")
            if time.monotonic() > deadline:
                raise self.fault(f"{what} not seen within {seconds:g} s")
            time.sleep(0.02)

    def end(self, how: signal.Signals = signal.SIGTERM) -> int:
        """Ask the program to end, then make it; returns its exit status."""
        if self.alive():
            self.process.send_signal(how)
        try:
            status = self.process.wait(GRACE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            status = self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
        return status


class Children:
    """The programs of one lab, and the folder for their logs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._running: list[Child] = []

    def start(
        self,
        name: str,
        namespace: str,
        command: Sequence[str],
        *,
        pipes: bool = False,
        environment: Mapping[str, str] | None = None,
    ) -> Child:
        """Start ``command`` inside ``namespace``.

        With ``pipes`` its standard input and output are pipes, else closed.
        """
        log = self.folder / f"{name}.log"
        pipe = subprocess.PIPE if pipes else subprocess.DEVNULL
        with log.open("wb") as sink:
            process = subprocess.Popen(
                [*wrapper(namespace), *command],
                stdin=pipe,
                stdout=pipe if pipes else sink,
                stderr=sink,
                env={**os.environ, **(environment or {})},
                start_new_session=True,  # Ctrl-C reaches the lab alone, which then ends its children in order
            )
        child = Child(name, process, log)
        self._running.append(child)
        return child

    def end(self, *children: Child) -> None:
        """End these children; all get the signal before the first is waited for."""
        for child in children:
            if child.alive():
                child.process.terminate()
        for child in children:
            child.end()
            self._running.remove(child)

    def kill_all(self) -> None:
        """End them all at once; for the end of a lab, whose children have nothing to save."""
        for child in self._running:
            if child.alive():
                child.process.kill()
        for child in self._running:
            child.end()
        self._running.clear()


def wrapper(namespace: str) -> list[str]:
    """The words before a command that put it into a namespace and bind its life to the calling thread's."""
    return ["setpriv", "--pdeathsig", "KILL", "nsenter", f"--net={kernel.NAMESPACES / namespace}", "--"]


def call(namespace: str, command: Sequence[str], *, text: str | None = None, timeout: float = 20.0) -> str:
    """Run a short program inside a namespace and give what it printed; its failure is a LabError."""
    try:
        done = subprocess.run(
            [*wrapper(namespace), *command],
            input=text,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise LabError(f"{' '.join(command)} took more than {timeout:g} s") from error
    if done.returncode != 0:
        raise LabError(
            f"{' '.join(command)} failed with {done.returncode}: {done.stderr.strip() or done.stdout.strip()}"
        )
    return done.stdout
