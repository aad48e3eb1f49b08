"""The operating system: files that are written whole, standard streams, memory, child processes."""
