"""One module per claim; results beside them in results/*.json."""
