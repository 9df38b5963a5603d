"""The front door: a language model's protocols, passed on byte for byte, recorded beside, and answered where allowed."""
