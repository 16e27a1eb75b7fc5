"""Released policies for machines without JAX or without sorl: as ONNX, StableHLO or plain NumPy."""
