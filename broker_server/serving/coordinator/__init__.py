"""The coordinator process: from messages to events of the rounds, and from their commands to what is done."""
