"""A heterogeneous fleet on one machine: real devices, messages and training; only time is modelled, and so called."""
