"""What the ledger says: statistics, comparison, report. Nothing here trains or searches."""
