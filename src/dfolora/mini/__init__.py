"""The embedded small world: generated texts, no network."""
