"""What the service answers: one noun a file, each a function that builds its router."""
