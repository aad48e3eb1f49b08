"""The doors to the network, one file each: MQTT and HTTP."""
