"""The main job: a whole federated run on one machine, as separate real processes over loopback."""
