"""What shows or mirrors the ledger: one file each."""
