"""Whatever decides better than the student, for a price."""
