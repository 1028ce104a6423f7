"""The privacy game: the proxy attacker, its checks, and the two objectives."""
