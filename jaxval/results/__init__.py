"""The ledger, its lock, and the trackers that mirror it."""
