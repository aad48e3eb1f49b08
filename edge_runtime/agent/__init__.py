"""The device agent: registers, takes assignments, publishes updates through a disk outbox."""
