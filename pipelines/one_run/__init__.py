"""One run: its configuration checked, its fit and test, and its record."""
