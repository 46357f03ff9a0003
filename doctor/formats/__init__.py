"""Readers of other annotation formats for `doctor.convert`; each gives a list of `record.Picture`."""
