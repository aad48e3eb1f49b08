"""What values from outside may be: types of fields, limits, text for a terminal."""
