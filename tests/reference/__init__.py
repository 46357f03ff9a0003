"""Equality with the published implementation, proved against stored values (README.md beside this file).

streams and coco_folder make the inputs, settings builds the models, the modules named after a part of
the project compute the values of their cases, registry lists the cases, compare judges the values.

What is tested is imported inside the functions: a module that is missing or broken fails the cases
that need it, and no others.
"""
