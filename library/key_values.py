"""key=value texts, as network_args, optimizer_args and lr_scheduler_args hold them."""


def split_pair(pair: str) -> tuple[str, str] | None:
    """Key and value of ``"conv_dim = 8"``, without outer spaces; None where the equals sign or the key is missing."""
    name, equals, text = (piece.strip() for piece in pair.partition("="))
    return (name, text) if equals and name else None
