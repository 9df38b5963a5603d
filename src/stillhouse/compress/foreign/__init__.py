"""Models that were not trained here: a torch program (``.pt2``) or an ONNX graph as a compression target."""
