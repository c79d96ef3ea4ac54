"""The explorer, and the command `facelab`."""
