"""What a graph computes, and whether it still does: programs run on onnxruntime as a reference."""
