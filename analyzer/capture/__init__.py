"""Bytes to one-way rows. Rule: fills rows and ledgers; knows nothing of clients, roles or rules."""
