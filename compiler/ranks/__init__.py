"""Several ranks of one bundle, as threads of a process or as processes; for any target."""
