"""The agent's own side: it decides with the champion, records what it lived through, and learns outcomes."""
