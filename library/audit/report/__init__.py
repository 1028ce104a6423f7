"""The evaluation of one LoRA with its verdict, and what people and programs read: the page, figures, JSON and CSV."""
