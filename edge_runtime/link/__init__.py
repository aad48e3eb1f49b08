"""The doors to the network, one file each: MQTT, HTTP, and blobs in chunks over MQTT (``transfers``)."""
