"""CPU kernels in TIR, one file a family."""
