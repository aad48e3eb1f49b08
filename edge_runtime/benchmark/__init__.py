"""A benchmark of training engines: every contender's request, work and answer. No engine is imported here."""
