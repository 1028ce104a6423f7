"""Running a training: output folder, optimizer, steps, checkpoints, states, records, previews on disk."""
