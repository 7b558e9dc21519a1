"""The built-in passes: one a file, found through the registry, never imported by the compiler."""
