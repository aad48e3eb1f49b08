"""The rounds of a run as a pure state machine, with states, events and commands."""
