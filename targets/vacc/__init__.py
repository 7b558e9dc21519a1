"""The accelerator: partitions compiled to tile programs, run by a driver; an emulator is one."""
