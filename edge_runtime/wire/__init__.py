"""All that two rooms must agree on: topics, messages, tensors on the wire, the manifest of an artifact, names."""
