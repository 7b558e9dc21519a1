"""The reference: transformers' own model in float32, never our traced module."""
