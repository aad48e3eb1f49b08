"""Servers for devices beside the coordinator: the MQTT broker, and artifacts over HTTP."""
