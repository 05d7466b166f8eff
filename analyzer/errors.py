"""Errors, split by whose fault they are. Rule: this file knows no other part of the package.

    AnalyzerError
    ├── CaptureError   a capture or flow file cannot be read as what it claims to be
    ├── SpecError      a specification file or table is wrong
    ├── ClusterError   a cluster inventory is wrong
    └── LiveError      this machine cannot do it (no rights, no eBPF, a program is missing)

Each one says what is wrong, where, and what to do next. Only ``cli.py`` turns them into text and an exit
status.
"""

from __future__ import annotations

#: exit status after Ctrl-C, as shells give it: 128 + SIGINT
INTERRUPTED = 130


class AnalyzerError(Exception):
    """Base of every error that a user can cause or mend.

    ``what`` is the fault in one clause, ``where`` the place (file, line, frame, offset), ``next_step`` what
    to do. ``str()`` gives the three as one line.
    """

    exit_status = 2

    def __init__(self, what: str, *, where: str = "", next_step: str = "") -> None:
        self.what = what
        self.where = where
        self.next_step = next_step
        super().__init__(what)

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        advice = f" ({self.next_step})" if self.next_step else ""
        return " ".join(f"{place}{self.what}{advice}".split())


class CaptureError(AnalyzerError):
    """A capture or flow file is missing, is none, or is damaged before its first frame."""


class SpecError(AnalyzerError):
    """A specification (YAML or Markdown table) breaks a rule of its format."""


class ClusterError(AnalyzerError):
    """A cluster inventory breaks a rule of its format, or contradicts itself."""


class LiveError(AnalyzerError):
    """The machine lacks the rights or the parts for what was asked."""

    exit_status = 3
