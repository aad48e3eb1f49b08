"""The board as a machine: sensors, reasons to pause work, the priority of the process, and the service manager."""
