"""The verbs: each file is a table of contents that composes stages."""
