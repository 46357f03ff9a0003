"""The parts of the data set doctor; `datasets.check` and `datasets.fix` put them together."""
