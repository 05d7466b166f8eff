"""The one error of the lab. Rule: knows no other part of the lab."""

from __future__ import annotations


class LabError(Exception):
    """The lab could not be built, or it did not do what its table says: nothing may be recorded from it."""
