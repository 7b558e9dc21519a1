"""What the author of a pass, a target or a model family imports; it loads neither torch nor tvm."""
