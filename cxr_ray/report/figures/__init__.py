"""The figures of a report, by kind. Each takes a frame that holds its numbers; none reads or writes a file."""
