"""TensorFlow Lite (LiteRT) models -> graph IR; `load.py` is the door."""
