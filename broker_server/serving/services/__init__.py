"""Servers that devices meet beside the coordinator: the MQTT broker and artifacts over HTTP."""
