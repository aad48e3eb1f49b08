"""The protocol between server and devices: messages, topics, chunks, arms and replies."""
