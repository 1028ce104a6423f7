"""What people read: figures, tables, the page, JSON and CSV, the evaluation and its verdict."""
