"""Claims about the proxy attacker and the game."""
