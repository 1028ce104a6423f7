"""The two objectives, the proxy attacker, and the history of its checks."""
