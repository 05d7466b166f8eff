"""Run one program and say what it took. Rule: standard library only, and little of it.

A child's peak memory starts at that of the process that forked it (the kernel counts the image before exec),
so a large parent would hide small programs. This file is a small one: a bare interpreter runs it as
``python -I -S launch.py REPORT OUTPUT PROGRAM ARGUMENT...``. Peaks below some 6 MB cannot be told apart.
"""

import os
import sys
import time


def _child(output: str, command: list[str]) -> None:
    log = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    try:
        os.execvp(command[0], command)  # noqa: S606 - there is no shell to begin with
    except OSError as error:
        os.write(2, f"{command[0]}: {error}\n".encode())
    os._exit(127)


def main(report: str, output: str, *command: str) -> None:
    """Write ``status wall user system peak`` (seconds, KiB) to ``report``, what it prints to ``output``."""
    begin = time.perf_counter()
    child = os.fork()
    if child == 0:
        _child(output, list(command))
    _, status, usage = os.wait4(child, 0)
    wall = time.perf_counter() - begin
    with open(report, "w", encoding="ascii") as out:
        code = os.waitstatus_to_exitcode(status)
        out.write(f"{code} {wall} {usage.ru_utime} {usage.ru_stime} {usage.ru_maxrss}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
