"""Teachers: they decide better than the student, at a higher cost."""
