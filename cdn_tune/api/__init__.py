"""The Python API: what the command line does, as functions that return objects and raise `cdn_tune.errors`.

`cdn_tune` itself offers what is meant to be used; nothing here is imported before its first use.
"""
