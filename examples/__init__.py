"""Python parts that the agent files name: sources of observations and outcomes, and teachers."""
