"""How far the world moved, and what to do about it."""
