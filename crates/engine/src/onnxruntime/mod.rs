//! ONNX Runtime, opened at run time.
