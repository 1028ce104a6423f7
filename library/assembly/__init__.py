"""What needs several rooms at once: run, game, validation and outputs of a training; the questions of an audit."""
