"""Students, and their training on teacher probabilities and labels."""
