"""The files of a model folder: read by slice, written whole or not at all."""
