"""Drafts a task file from rows."""
