"""Claims about whole runs through the doors, their launchers and the documents."""
