"""Speed and memory beside other flow meters. Rule: runs programs from outside, as a user would.

Nothing of the analyzer is imported here. Run it by hand: ``PYTHONPATH=tests python -m bench --help``. The
test suite checks what it generates and counts, never a time.
"""
