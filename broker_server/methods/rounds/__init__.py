"""The rounds of a run as a pure state machine, with its states, events and commands."""
