"""A benchmark of training engines: what every contender is asked, does, and answers. No engine is imported here."""
