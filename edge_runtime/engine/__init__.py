"""The device engine: artifact on disk, slicing by plan, data, training and evaluation on plain onnxruntime."""
