"""Studies from what a team has: a folder of videos, or a benchmark's, a log's or a data set's files."""
