"""The reference target: Relax and hand-scheduled TIR on any CPU, through LLVM."""
