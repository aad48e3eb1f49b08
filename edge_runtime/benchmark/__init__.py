"""A benchmark of training engines: request, work and result of each contender. No engine is imported here."""
