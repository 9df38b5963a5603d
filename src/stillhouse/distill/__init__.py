"""The student, and how it learns from knowledge and outcomes."""
