"""The embedded demonstration: Magika, a model that tells what kind of file a file is."""
