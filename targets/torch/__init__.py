"""The reference: transformers' own model, plainly in float32, never our traced module."""
