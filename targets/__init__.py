"""Targets: one folder each, with the same files, found through the registry."""
