"""The parts of the data set doctor; `doctor.check` and `doctor.fix` put them together."""
