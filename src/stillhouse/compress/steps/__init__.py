"""The compression steps, one in each file; ``kinds`` maps a step's settings to its function."""
