"""The privacy game: the proxy attacker, its turn, and the two objectives."""
