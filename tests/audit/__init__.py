"""Claims about the audit."""
