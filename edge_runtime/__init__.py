"""The device: fetch, verify, slice, train, measure, publish. Never torch."""
