"""The board as a machine: its sensors, when work should pause, how politely it runs, and its service manager."""
