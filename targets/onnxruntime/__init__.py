"""The programs themselves, after any pass, on onnxruntime; every tap seen, or replaced."""
