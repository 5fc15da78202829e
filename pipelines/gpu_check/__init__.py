"""Check of a GPU: what works on it, how fast, in what memory; one report."""
