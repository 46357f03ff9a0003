"""Readers of other annotation formats for `datasets.convert`; each gives a list of `record.Picture`."""
